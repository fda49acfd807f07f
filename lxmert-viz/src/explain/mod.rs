//! What a score is based on: a checkpoint's attention maps, the methods that read them, and two measures of the
//! methods.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`scorer`], [`asker`], [`judge`] | a checkpoint that scores pairs, answers questions or judges statements, with its attention maps |
//! | [`maps`], [`matrix`] | the captured attention and its gradients, as small matrices |
//! | [`methods`] | attention, gradient × attention, Grad-CAM, and the common interface |
//! | [`rollout`], [`relevancy`] | the two methods that use all layers |
//! | [`words`] | a sentence's words and their word pieces |
//! | [`perturbation`] | whether a method knows what matters, measured by removing it |
//! | [`grounding`], [`entities`] | whether the region that a phrase points to is the one it names |

pub mod asker;
pub mod entities;
pub mod grounding;
pub mod judge;
pub mod maps;
pub mod matrix;
pub mod methods;
pub mod perturbation;
pub mod relevancy;
pub mod rollout;
pub mod scorer;
pub mod words;
