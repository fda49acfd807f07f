//! What a detector needs of a weight file.

use super::{DetectorConfig, Network, NormMode};
use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use lxmert_core::Result;
use std::sync::{Arc, Mutex, PoisonError};

/// Name and shape of every tensor that a detector of this configuration needs, as the network itself
/// asks for them: torchvision's key names, running statistics included.
///
/// # Errors
/// When `config` is not valid.
pub fn expected_tensors(config: &DetectorConfig) -> Result<Vec<(String, Vec<usize>)>> {
    config.validate()?;
    let names = Arc::new(Mutex::new(Vec::new()));
    let recorder = Box::new(Recorder(Arc::clone(&names)));
    Network::new(config, NormMode::Batch, VarBuilder::from_backend(recorder, DType::F32, Device::Cpu))?;
    let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(std::mem::take(&mut *names))
}

/// A source of weights that only notes what it is asked for. Its tensors are one zero, repeated.
struct Recorder(Arc<Mutex<Asked>>);

/// Name and shape of each tensor asked for.
type Asked = Vec<(String, Vec<usize>)>;

impl SimpleBackend for Recorder {
    fn get(&self, s: Shape, name: &str, _: Init, dtype: DType, dev: &Device) -> candle_core::Result<Tensor> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((name.to_string(), s.dims().to_vec()));
        Tensor::zeros((), dtype, dev)?.broadcast_as(s)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("the shape of {name} is not known")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_asks_for_torchvision_s_tensors() -> Result<()> {
        let expected = expected_tensors(&DetectorConfig::coco())?;
        // python: sum(v.numel() for v in fasterrcnn_resnet50_fpn().state_dict().values())
        assert_eq!(expected.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum::<usize>(), 41_861_526);
        assert_eq!(expected.len(), 295);
        assert!(expected.contains(&("backbone.fpn.inner_blocks.3.0.weight".into(), vec![256, 2048, 1, 1])));
        Ok(())
    }
}
