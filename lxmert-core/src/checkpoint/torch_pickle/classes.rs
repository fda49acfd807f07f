//! The classes and functions that a pickle of weights may name, and what each of them makes.

use super::vm::{Heap, Id, Node};
use crate::checkpoint::elements::Element;
use std::rc::Rc;

/// Everything a pickle may name. What is not here ends the read.
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
}

/// An element type of torch: one that becomes a candle tensor, or one that is known by name alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElementType {
    Known(Element),
    /// `UntypedStorage`: bytes, whose type the tensor states.
    Untyped,
    /// Complex and quantised numbers: bytes of one element, and the name for the message.
    Unsupported(usize, &'static str),
}

impl ElementType {
    /// Bytes of one element in a storage.
    pub fn size(self) -> usize {
        match self {
            Self::Known(element) => element.size(),
            Self::Untyped => 1,
            Self::Unsupported(size, _) => size,
        }
    }
}

impl Class {
    /// The class called `module.name`, if a weight needs it.
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
            ("torch" | "torch.cuda", _) => Self::ElementType(element_type(name)?),
            _ => return None,
        })
    }

    /// What calling the class with `arguments` makes.
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
                _ => Err("a parameter holds no tensor".into()),
            },
        }
    }
}

/// What a call made.
pub enum Call {
    New(Node),
    /// An argument itself: a parameter is its tensor.
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
    let items = heap.sequence(items).ok_or("an OrderedDict is made of what is no list")?;
    items
        .iter()
        .map(|&pair| match heap.sequence(pair) {
            Some(&[key, value]) => Ok((key, value)),
            _ => Err("an OrderedDict is made of what are no pairs".to_string()),
        })
        .collect()
}

/// A run of elements that lies elsewhere in the file, by the key that it has there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Storage {
    pub key: Rc<str>,
    pub element: ElementType,
    /// Elements of the whole storage.
    pub elements: usize,
    /// Where a storage view (legacy files alone have them) starts in the whole, in elements.
    pub view_offset: usize,
}

impl std::hash::Hash for ElementType {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.size().hash(state);
    }
}

impl Storage {
    /// From torch's persistent id, `('storage', class, key, location, elements[, view])`, where a legacy
    /// file's `view` is `None` or `(key, offset, elements)`.
    pub fn of_persistent_id(heap: &Heap, id: Id) -> Result<Self, String> {
        let bad = "a storage is named in a way that torch does not";
        let items = heap.sequence(id).ok_or(bad)?;
        let (Some(&kind), Some(&class), Some(&key), Some(&elements)) =
            (items.first(), items.get(1), items.get(2), items.get(4))
        else {
            return Err(bad.into());
        };
        if heap.text(kind) != Some("storage") {
            return Err("it refers to an outside object that is no storage".into());
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

/// A tensor as the pickle states it: which elements of which storage.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TensorSpec {
    pub storage: Storage,
    pub element: ElementType,
    /// In elements from the storage's (or its view's) start.
    pub offset: usize,
    pub shape: Vec<usize>,
    /// In elements.
    pub stride: Vec<usize>,
}

impl TensorSpec {
    /// `(storage, offset, size, stride, …)`; version 3 states the element type at index 6.
    fn rebuild(heap: &Heap, arguments: &[Id], version: u8) -> Result<Self, String> {
        let bad = "a tensor is described in a way that torch does not";
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
