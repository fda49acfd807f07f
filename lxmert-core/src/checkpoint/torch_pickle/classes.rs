//! The classes and functions that a pickle of weights may name, and what each of them builds.

use super::vm::{Bytes, Heap, Id, Node};
use crate::checkpoint::elements::Element;
use std::rc::Rc;

/// Everything a pickle may name. Any other name ends the read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    OrderedDict,
    /// `torch.Size`: a tuple.
    Size,
    /// `torch.device`.
    Device,
    /// `torch.FloatStorage` and its like, and `torch.float32` and its like.
    ElementType(ElementType),
    /// `torch._utils._rebuild_tensor` (0.3), `_rebuild_tensor_v2`, `_rebuild_tensor_v3`.
    RebuildTensor {
        version: u8,
    },
    /// `torch._utils._rebuild_parameter` and `_rebuild_parameter_with_state`.
    RebuildParameter,
    /// `numpy.dtype`.
    Dtype,
    /// `numpy.ndarray`, which is named but never called.
    Array,
    /// NumPy's `_reconstruct`: an array to be filled later.
    ReconstructArray,
    /// NumPy's `_frombuffer`: an array over given bytes.
    ArrayFromBuffer,
    /// NumPy's `scalar`: a single number.
    Scalar,
    /// `_codecs.encode`, with which older pickles write bytes as text.
    Encode,
    /// `bytes`, with which older pickles write empty bytes.
    Bytes,
}

/// An element type of torch: one that becomes a candle tensor, or one known only by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElementType {
    Known(Element),
    /// `UntypedStorage`: bytes whose type the tensor states.
    Untyped,
    /// Complex and quantised numbers: the bytes of one element, and the name for the error message.
    Unsupported(usize, &'static str),
}

impl ElementType {
    /// Bytes per element in a storage.
    pub fn size(self) -> usize {
        match self {
            Self::Known(element) => element.size(),
            Self::Untyped => 1,
            Self::Unsupported(size, _) => size,
        }
    }
}

impl Class {
    /// The class called `module.name`, if weights need it.
    pub fn named(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch", "Size") => Self::Size,
            ("torch", "device") => Self::Device,
            ("torch._utils", "_rebuild_tensor") => Self::RebuildTensor { version: 1 },
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor { version: 2 },
            ("torch._utils", "_rebuild_tensor_v3") => Self::RebuildTensor { version: 3 },
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Self::RebuildParameter,
            ("torch" | "torch.storage", "UntypedStorage") => Self::ElementType(ElementType::Untyped),
            ("numpy", "dtype") => Self::Dtype,
            ("numpy", "ndarray") => Self::Array,
            ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => Self::ReconstructArray,
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Self::Scalar,
            ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => Self::ArrayFromBuffer,
            ("_codecs", "encode") => Self::Encode,
            ("builtins" | "__builtin__", "bytes") => Self::Bytes,
            ("torch" | "torch.cuda", _) => Self::ElementType(element_type(name)?),
            _ => return None,
        })
    }

    /// Calls the class with `arguments`.
    pub fn call(self, heap: &Heap, arguments: &[Id]) -> Result<Call, String> {
        match self {
            Self::OrderedDict => ordered_dict(heap, arguments).map(|entries| Call::New(Node::Dict(entries))),
            Self::Size => {
                let sizes = arguments.first().and_then(|&id| heap.sequence(id)).unwrap_or_default();
                Ok(Call::New(Node::Tuple(sizes.to_vec())))
            }
            Self::Device => Ok(Call::New(Node::Opaque)),
            Self::ElementType(_) => Err("it makes a storage by calling its class".into()),
            Self::RebuildTensor { version } => {
                TensorSpec::rebuild(heap, arguments, version).map(|spec| Call::New(Node::Tensor(spec)))
            }
            Self::RebuildParameter => match arguments.first() {
                Some(&data) if matches!(heap.get(data), Node::Tensor(_)) => Ok(Call::Same(data)),
                _ => Err("a parameter does not hold a tensor".into()),
            },
            Self::Dtype => match arguments.first().and_then(|&code| heap.text(code)) {
                Some(code) => Ok(Call::New(Node::Dtype(numpy_type(code)?))),
                None => Err("a NumPy element type without its code".into()),
            },
            Self::Array => Err("it makes an array by calling its class".into()),
            Self::ReconstructArray => Ok(Call::New(Node::Array(None))),
            Self::ArrayFromBuffer => {
                ArraySpec::from_buffer(heap, arguments).map(|array| Call::New(Node::Array(Some(array))))
            }
            Self::Scalar => Ok(Call::New(Node::Opaque)),
            Self::Encode => match arguments.first().and_then(|&text| heap.text(text)) {
                Some(text) => {
                    let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
                    let bytes = bytes.ok_or("it encodes text that is not Latin-1")?;
                    Ok(Call::New(Node::Bytes(Bytes::Own(bytes.into()))))
                }
                None => Err("it encodes something other than text".into()),
            },
            Self::Bytes if arguments.is_empty() => Ok(Call::New(Node::Bytes(Bytes::At(0..0)))),
            Self::Bytes => Err("it makes bytes from other values".into()),
        }
    }
}

/// The element type of a NumPy code such as `f4` or `<i8`.
fn numpy_type(code: &str) -> Result<ElementType, String> {
    use ElementType::Known;
    Ok(match code.trim_start_matches(['<', '=', '|']) {
        "f8" => Known(Element::F64),
        "f4" => Known(Element::F32),
        "f2" => Known(Element::F16),
        "i8" => Known(Element::I64),
        "i4" => Known(Element::I32),
        "i2" => Known(Element::I16),
        "i1" => Known(Element::I8),
        "u4" => Known(Element::U32),
        "u1" => Known(Element::U8),
        "b1" => Known(Element::Bool),
        _ => ElementType::Unsupported(1, "a NumPy type"),
    })
}

/// A NumPy array as the pickle describes it.
#[derive(Debug, Clone)]
pub struct ArraySpec {
    pub element: ElementType,
    pub shape: Vec<usize>,
    /// Whether the first index varies fastest (Fortran order).
    pub first_fastest: bool,
    pub bytes: Bytes,
}

impl ArraySpec {
    /// From the state `(version, shape, dtype, is_fortran, bytes)`.
    pub fn of_state(heap: &Heap, state: &[Id]) -> Result<Self, String> {
        let &[_, shape, dtype, first_fastest, bytes] = state else {
            return Err("a NumPy array is described in a way that NumPy does not use".into());
        };
        let bytes = heap.bytes(bytes).ok_or("a NumPy array without its numbers (perhaps of Python objects)")?;
        Self::new(heap, shape, dtype, heap.int(first_fastest) == Some(1), bytes)
    }

    /// From `_frombuffer`'s `(bytes, dtype, shape, order)`.
    fn from_buffer(heap: &Heap, arguments: &[Id]) -> Result<Self, String> {
        let &[bytes, dtype, shape, order] = arguments else {
            return Err("a NumPy array is described in a way that NumPy does not use".into());
        };
        let Node::Bytes(bytes) = heap.get(bytes) else { return Err("a NumPy array without its numbers".into()) };
        Self::new(heap, shape, dtype, heap.text(order) == Some("F"), bytes.clone())
    }

    fn new(heap: &Heap, shape: Id, dtype: Id, first_fastest: bool, bytes: Bytes) -> Result<Self, String> {
        let &Node::Dtype(element) = heap.get(dtype) else { return Err("a NumPy array without a type".into()) };
        let shape = heap.sizes(shape).filter(|shape| shape.len() <= 64).ok_or("a NumPy array without a shape")?;
        Ok(Self { element, shape, first_fastest, bytes })
    }

    /// The array as a tensor over a storage of its own; `None` if its size overflows.
    pub fn tensor(&self) -> Option<TensorSpec> {
        let mut stride = vec![1; self.shape.len()];
        let mut step = 1usize;
        let mut axes: Vec<usize> = (0..self.shape.len()).collect();
        if !self.first_fastest {
            axes.reverse();
        }
        for axis in axes {
            stride[axis] = step;
            step = step.checked_mul(self.shape[axis].max(1))?;
        }
        let elements = self.shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n))?;
        let storage = Storage { key: "".into(), element: self.element, elements, view_offset: 0 };
        Some(TensorSpec { storage, element: self.element, offset: 0, shape: self.shape.clone(), stride })
    }
}

/// The result of a call.
pub enum Call {
    New(Node),
    /// One of the arguments: a parameter becomes its tensor.
    Same(Id),
}

fn element_type(name: &str) -> Option<ElementType> {
    use ElementType::{Known, Unsupported};
    Some(match name {
        "DoubleStorage" | "float64" | "double" => Known(Element::F64),
        "FloatStorage" | "float32" | "float" => Known(Element::F32),
        "HalfStorage" | "float16" | "half" => Known(Element::F16),
        "BFloat16Storage" | "bfloat16" => Known(Element::Bf16),
        "LongStorage" | "int64" | "long" => Known(Element::I64),
        "IntStorage" | "int32" | "int" => Known(Element::I32),
        "ShortStorage" | "int16" | "short" => Known(Element::I16),
        "CharStorage" | "int8" => Known(Element::I8),
        "ByteStorage" | "uint8" => Known(Element::U8),
        "BoolStorage" | "bool" => Known(Element::Bool),
        "uint32" => Known(Element::U32),
        "ComplexFloatStorage" | "complex64" | "cfloat" => Unsupported(8, "complex64"),
        "ComplexDoubleStorage" | "complex128" | "cdouble" => Unsupported(16, "complex128"),
        "complex32" | "chalf" => Unsupported(4, "complex32"),
        "uint16" => Unsupported(2, "uint16"),
        "uint64" => Unsupported(8, "uint64"),
        "float8_e4m3fn" | "float8_e5m2" | "float8_e4m3fnuz" | "float8_e5m2fnuz" | "float8_e8m0fnu" => {
            Unsupported(1, "float8")
        }
        "QUInt8Storage" | "quint8" => Unsupported(1, "quint8"),
        "QInt8Storage" | "qint8" => Unsupported(1, "qint8"),
        "QInt32Storage" | "qint32" => Unsupported(4, "qint32"),
        _ => return None,
    })
}

/// `OrderedDict()` or `OrderedDict([[key, value], …])`.
fn ordered_dict(heap: &Heap, arguments: &[Id]) -> Result<Vec<(Id, Id)>, String> {
    let Some(&items) = arguments.first() else { return Ok(Vec::new()) };
    let items = heap.sequence(items).ok_or("an OrderedDict is made from something other than a list")?;
    items
        .iter()
        .map(|&pair| match heap.sequence(pair) {
            Some(&[key, value]) => Ok((key, value)),
            _ => Err("an OrderedDict is made from something other than pairs".to_string()),
        })
        .collect()
}

/// A run of elements elsewhere in the file, and its key there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Storage {
    pub key: Rc<str>,
    pub element: ElementType,
    /// Number of elements of the whole storage.
    pub elements: usize,
    /// Where a storage view (only in legacy files) starts in the whole storage, in elements.
    pub view_offset: usize,
}

impl std::hash::Hash for ElementType {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.size().hash(state);
    }
}

impl Storage {
    /// From torch's persistent id, `('storage', class, key, location, elements[, view])`. In a legacy file `view` is
    /// `None` or `(key, offset, elements)`.
    pub fn of_persistent_id(heap: &Heap, id: Id) -> Result<Self, String> {
        let bad = "a storage is named in a way that torch does not use";
        let items = heap.sequence(id).ok_or(bad)?;
        let (Some(&kind), Some(&class), Some(&key), Some(&elements)) =
            (items.first(), items.get(1), items.get(2), items.get(4))
        else {
            return Err(bad.into());
        };
        if heap.text(kind) != Some("storage") {
            return Err("it refers to an external object that is not a storage".into());
        }
        let &Node::Class(Class::ElementType(element)) = heap.get(class) else { return Err(bad.into()) };
        let key = match heap.get(key) {
            Node::Text(key) => Rc::from(key.as_str()),
            Node::Int(key) => Rc::from(key.to_string()),
            _ => return Err(bad.into()),
        };
        let elements = heap.int(elements).and_then(|n| usize::try_from(n).ok()).ok_or(bad)?;
        let view_offset = match items.get(5).map(|&view| heap.get(view)) {
            None | Some(Node::None) => 0,
            Some(Node::Tuple(view)) => view
                .get(1)
                .and_then(|&offset| heap.int(offset))
                .and_then(|offset| usize::try_from(offset).ok())
                .ok_or(bad)?,
            Some(_) => return Err(bad.into()),
        };
        Ok(Self { key, element, elements, view_offset })
    }
}

/// A tensor as the pickle describes it: which elements of which storage.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TensorSpec {
    pub storage: Storage,
    pub element: ElementType,
    /// In elements, from the start of the storage or its view.
    pub offset: usize,
    pub shape: Vec<usize>,
    /// In elements.
    pub stride: Vec<usize>,
}

impl TensorSpec {
    /// From `(storage, offset, size, stride, …)`; version 3 states the element type at index 6.
    fn rebuild(heap: &Heap, arguments: &[Id], version: u8) -> Result<Self, String> {
        let bad = "a tensor is described in a way that torch does not use";
        let &[storage, offset, size, stride, ..] = arguments else { return Err(bad.into()) };
        let Node::Storage(storage) = heap.get(storage) else { return Err("a tensor has no storage".into()) };
        let element = if version == 3 {
            match arguments.get(6).map(|&id| heap.get(id)) {
                Some(&Node::Class(Class::ElementType(element))) => element,
                _ => return Err(bad.into()),
            }
        } else {
            storage.element
        };
        let spec = Self {
            storage: storage.clone(),
            element,
            offset: heap.int(offset).and_then(|n| usize::try_from(n).ok()).ok_or(bad)?,
            shape: heap.sizes(size).ok_or(bad)?,
            stride: heap.sizes(stride).ok_or(bad)?,
        };
        if spec.shape.len() != spec.stride.len() || spec.shape.len() > 64 {
            return Err(bad.into());
        }
        Ok(spec)
    }
}
