//! The CUDA kernels as a library that the host's C++ compiler makes of the very source that nvcc compiles
//! (`src/ops/cuda/kernels`, through `cuda_on_cpu.hpp`), and their launches. Without a C++ compiler (`CXX`, else `c++`) there is none,
//! and each test says so and passes.

#![allow(unsafe_code)] // calls into the library

use lxmert_core::ops::cuda::launches::{Argument, Launch};
use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock};

/// A kernel without the barrier that it needs, for a test of the tests.
const FAULTY: &str = r#"
extern "C" __global__ void missing_barrier(float *out) {
    __shared__ float values[64];
    values[threadIdx.x] = float(threadIdx.x);
    out[threadIdx.x] = values[63 - threadIdx.x];
    values[threadIdx.x] = -1.0f;
}
CPU_KERNEL(missing_barrier)
"#;

/// The compiled library. Its fibers are global, so that one launch runs at a time.
pub struct Library(usize, Mutex<()>);

impl Library {
    fn compile() -> Option<Self> {
        let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lxmert-core/src/ops/cuda/kernels/kernels.cu");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let (source, library) = (
            folder.join(concat!(env!("CARGO_PKG_NAME"), "-kernels.cpp")),
            folder.join(concat!(env!("CARGO_PKG_NAME"), "-kernels.so")),
        );
        std::fs::write(&source, format!("#include \"{}\"\n{FAULTY}", kernels.display())).unwrap();
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
        let flags = [
            "-std=c++17",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-Wno-unknown-pragmas",
            "-U_FORTIFY_SOURCE",
            "-ffp-contract=off",
        ];
        let mut command = Command::new(&compiler);
        command.args(flags).args(["-shared", "-fPIC"]).arg(&source).arg("-o").arg(&library);
        let Ok(output) = command.output() else {
            println!("SKIPPED: no C++ compiler '{compiler}', so the CUDA kernels are not tested here");
            return None;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let path = CString::new(library.to_str().unwrap()).unwrap();
        // SAFETY: a library of ours, without constructors that do more than set its globals.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        assert!(!handle.is_null(), "cannot load {}", library.display());
        Some(Self(handle as usize, Mutex::new(())))
    }

    /// The library, compiled once and held by one test at a time.
    pub fn get() -> Option<(&'static Self, MutexGuard<'static, ()>)> {
        static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
        let library = LIBRARY.get_or_init(Self::compile).as_ref()?;
        Some((library, library.1.lock().unwrap_or_else(|poisoned| poisoned.into_inner())))
    }

    fn symbol(&self, name: &str) -> *mut c_void {
        let text = CString::new(name).unwrap();
        // SAFETY: a handle that dlopen gave and a string that ends in 0.
        let symbol = unsafe { libc::dlsym(self.0 as *mut c_void, text.as_ptr().cast::<c_char>()) };
        assert!(!symbol.is_null(), "no kernel {name}");
        symbol
    }

    /// Runs a launch, its threads in order or in reverse.
    pub fn launch(&self, launch: &Launch, reverse: bool) {
        if launch.is_empty() {
            return;
        }
        type Reverse = extern "C" fn(c_int);
        type Kernel = extern "C" fn(*const u32, u32, usize, *mut *mut c_void);
        // SAFETY: `cuda_on_cpu.hpp` defines both with these parameters.
        let (reverse_threads, kernel) = unsafe {
            let kernel = self.symbol(&format!("cpu_{}", launch.kernel));
            let reverse = self.symbol("cuda_on_cpu_reverse");
            (std::mem::transmute::<*mut c_void, Reverse>(reverse), std::mem::transmute::<*mut c_void, Kernel>(kernel))
        };
        // 8 bytes each, of which the kernel reads as many as its parameter has: little-endian, as every CUDA host is.
        let mut arguments: Vec<u64> = launch.arguments.iter().map(|argument| bits(*argument)).collect();
        let mut pointers: Vec<*mut c_void> = arguments.iter_mut().map(|a| std::ptr::from_mut(a).cast()).collect();
        reverse_threads(c_int::from(reverse));
        kernel(launch.grid.as_ptr(), launch.threads, launch.shared as usize, pointers.as_mut_ptr());
    }
}

fn bits(argument: Argument) -> u64 {
    match argument {
        Argument::Address(value) | Argument::U64(value) => value,
        Argument::U32(value) => u64::from(value),
        Argument::F32(value) => u64::from(value.to_bits()),
        Argument::F64(value) => value.to_bits(),
    }
}
