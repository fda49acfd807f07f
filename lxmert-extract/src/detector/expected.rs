//! What a detector needs of a weight file.

use super::{DetectorConfig, Network, NormMode};
use lxmert_core::{Result, model::init};

/// Name and shape of every tensor that a detector of this configuration needs, as the network itself
/// asks for them: by the configuration's key names, running statistics included.
///
/// # Errors
/// When `config` is not valid.
pub fn expected_tensors(config: &DetectorConfig) -> Result<Vec<(String, Vec<usize>)>> {
    config.validate()?;
    Ok(init::expected(|vb| Network::new(config, NormMode::Batch, vb).map(drop))?)
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
