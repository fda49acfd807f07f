//! Opening a device, and launching the kernels on its tensors.

#![allow(unsafe_code)] // the driver's calls

use super::launches::{Argument, Element, Launch};
use crate::ops::use_reference;
use candle_core::backend::BackendDevice;
use candle_core::cuda_backend::cudarc::driver::{DevicePtr, LaunchConfig, PushKernelArg, result, sys};
use candle_core::cuda_backend::{CudaDevice, CudaStorage, CudaStorageSlice};
use candle_core::op::BackpropOp;
use candle_core::{DType, Device, Error, Result, Shape, Storage, Tensor, bail};
use half::bf16;

/// The kernels as nvcc left them.
const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

/// Opens CUDA device `ordinal` with one stream for all threads, so that whatever thread asks for a computation, it comes after
/// those before it. (candle's own way is a stream per thread, whose order nothing says.) With one stream nothing needs cudarc's two
/// events an allocation. Freed memory stays with the process: the pool's default gives it back to the system at every
/// synchronisation.
///
/// # Errors
/// When there is no driver or no such device.
pub fn open(ordinal: usize) -> Result<Device> {
    let device = Device::new_cuda_with_stream(ordinal)?;
    let cuda = device.as_cuda_device()?;
    // SAFETY: this device has one stream, so that nothing is used on another before it is ready or after it is freed.
    unsafe { cuda.disable_event_tracking() };
    let keep = u64::MAX;
    // SAFETY: a device that has just been opened; the attribute's value is a u64.
    let raised = unsafe {
        let of = cuda.cuda_stream().context().cu_device();
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::device::get_default_mem_pool(of).and_then(|pool| {
            sys::cuMemPoolSetAttribute(pool, attribute, std::ptr::from_ref(&keep).cast_mut().cast()).result()
        })
    };
    if let Err(error) = raised {
        log::warn!("CUDA's memory pool keeps its default: {error}; freed memory goes back to the system at every wait");
    }
    Ok(device)
}

/// Whether the kernels apply: every tensor is on one CUDA device, and the reference was not asked for.
pub fn use_kernels(tensors: &[&Tensor]) -> bool {
    !use_reference() && tensors.iter().all(|tensor| tensor.device().is_cuda())
}

/// What a tensor's values are; none for types that the kernels do not take.
pub fn element(dtype: DType) -> Option<Element> {
    match dtype {
        DType::F32 => Some(Element::F32),
        DType::BF16 => Some(Element::Bf16),
        _ => None,
    }
}

/// Launches kernels in order. Their addresses are of tensors that live until the call returns: the stream frees none before.
pub fn run(device: &CudaDevice, launches: &[Launch]) -> Result<()> {
    for launch in launches.iter().filter(|launch| !launch.is_empty()) {
        let function = device.get_or_load_custom_func(&launch.kernel, "lxmert", PTX)?;
        let mut builder = function.builder();
        for argument in &launch.arguments {
            match argument {
                Argument::Address(value) | Argument::U64(value) => builder.arg(value),
                Argument::U32(value) => builder.arg(value),
                Argument::F32(value) => builder.arg(value),
                Argument::F64(value) => builder.arg(value),
            };
        }
        let [x, y, z] = launch.grid;
        let config =
            LaunchConfig { grid_dim: (x, y, z), block_dim: (launch.threads, 1, 1), shared_mem_bytes: launch.shared };
        // SAFETY: `launches` gives each kernel its parameters, as the tests on the CPU hold it to; the addresses are of tensors
        // of the sizes said beside them.
        unsafe { builder.launch(config) }.map_err(|error| Error::Cuda(format!("{}: {error}", launch.kernel).into()))?;
    }
    Ok(())
}

/// Where a CUDA storage's values begin.
pub fn storage_address(storage: &CudaStorage) -> Result<u64> {
    let stream = storage.device.cuda_stream();
    Ok(match &storage.slice {
        CudaStorageSlice::F32(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::BF16(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::U32(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::I64(slice) => slice.device_ptr(&stream).0,
        CudaStorageSlice::F64(slice) => slice.device_ptr(&stream).0,
        _ => bail!("the kernels take f32, bf16, u32, i64 and f64"),
    })
}

/// Where a contiguous CUDA tensor's values begin.
pub fn address(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let Some((start, _)) = layout.contiguous_offsets() else {
        return Err(Error::RequiresContiguous { op: "lxmert kernel" }.bt());
    };
    match &*storage {
        Storage::Cuda(storage) => Ok(storage_address(storage)? + (start * tensor.dtype().size_in_bytes()) as u64),
        _ => bail!("a CUDA kernel was given a tensor on {:?}", tensor.device()),
    }
}

/// Where an optional tensor begins; 0 for none.
pub fn address_or_null(tensor: Option<&Tensor>) -> Result<u64> {
    tensor.map_or(Ok(0), address)
}

/// Room for a result, whose values a kernel writes.
pub fn room(device: &CudaDevice, shape: impl Into<Shape>, dtype: DType) -> Result<CudaStorage> {
    // SAFETY: callers hand it to a kernel that writes every value.
    unsafe { device.alloc_uninit(&shape.into(), dtype) }
}

/// As [`room`], as a tensor.
pub fn empty(device: &CudaDevice, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
    let shape = shape.into();
    Ok(tensor(room(device, shape.clone(), dtype)?, shape))
}

/// A storage as a tensor outside of the graph.
pub fn tensor(storage: CudaStorage, shape: impl Into<Shape>) -> Tensor {
    Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
}

/// The type that the kernels' bf16 is in Rust.
const _: () = assert!(size_of::<bf16>() == 2);
