//! The tensors that a detector needs from a weights file.

use super::{DetectorConfig, Network, NormMode};
use lxmert_core::{Result, model::init};

/// Name and shape of every tensor that a detector of this configuration needs, collected from the network itself, under
/// the configuration's key names, running statistics included.
///
/// # Errors
/// Returns an error if `config` is invalid.
pub fn expected_tensors(config: &DetectorConfig) -> Result<Vec<(String, Vec<usize>)>> {
    config.validate()?;
    Ok(init::expected(|vb| Network::new(config, NormMode::Batch, vb).map(drop))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_expects_torchvisions_tensors() -> Result<()> {
        let expected = expected_tensors(&DetectorConfig::coco())?;
        // python: sum(v.numel() for v in fasterrcnn_resnet50_fpn().state_dict().values())
        assert_eq!(expected.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum::<usize>(), 41_861_526);
        assert_eq!(expected.len(), 295);
        assert!(expected.contains(&("backbone.fpn.inner_blocks.3.0.weight".into(), vec![256, 2048, 1, 1])));
        Ok(())
    }
}
