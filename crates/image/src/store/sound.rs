//! Whether a layer's file is what was written: looked at before it is used.
//!
//! Always its length and its first block, which name the layer. After the host went down under an open store also every
//! byte, once: see [`crate::records::Records::begin_run`].

use proto::control::LayerFile;
use proto::{Digest, ErrorKind};

use super::{ImageStore, StoreError};
use crate::config::Image;
use crate::content::LayerFault;
use crate::nothing;
use crate::records::{Change, LayerRecord};

/// A recorded layer whose file is gone or changed.
#[derive(Debug, thiserror::Error)]
#[error("layer {diff_id} of image {image} is damaged: {remedy}")]
pub struct LayerFilesError {
    /// The image.
    pub image: Digest,
    /// Its layer.
    pub diff_id: Digest,
    /// What to do.
    pub remedy: String,
    /// What is wrong.
    #[source]
    pub fault: LayerFault,
}

impl LayerFilesError {
    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Internal
    }
}

impl ImageStore {
    /// The files to mount for an image, lowest first, each there and as it was written as far as its first block tells;
    /// after a crash of the host, as every byte tells.
    ///
    /// Shape: a layer that occurs twice is given once, where it occurs last, because there it hides its earlier self
    /// wholly (and overlayfs refuses one folder twice). Layers below one that hides everything are left out.
    ///
    /// # Errors
    /// [`LayerFilesError`]: a file is gone or damaged.
    pub fn layer_files(&self, image: &Image) -> Result<Vec<LayerFile>, LayerFilesError> {
        let mut chosen: Vec<Digest> = Vec::new();
        let index = self.index();
        for diff_id in image.diff_ids.iter().rev() {
            if !chosen.contains(diff_id) {
                chosen.push(diff_id.clone());
            }
            if index.layers.get(diff_id).is_some_and(|record| record.root_opaque) {
                break;
            }
        }
        drop(index);
        if chosen.is_empty() {
            chosen.push(nothing::layer().clone());
        }
        chosen.reverse();
        let check = |diff_id: Digest| match self.check_layer(&diff_id) {
            Ok(()) => Ok(LayerFile { path: self.content.layer_path(&diff_id), diff_id }),
            Err(fault) => {
                let remedy = self.remedy(&image.id);
                Err(LayerFilesError { image: image.id.clone(), diff_id, remedy, fault })
            }
        };
        chosen.into_iter().map(check).collect()
    }

    /// What brings an image's damaged layers back.
    pub(super) fn remedy(&self, image: &Digest) -> String {
        match self.find_digests(image).first() {
            Some(name) => format!("pull {name} again"),
            None => "load it again".to_owned(),
        }
    }

    /// Finds out whether a layer can be used. When: the index is not locked; takes long only as the module says.
    pub(super) fn check_layer(&self, diff_id: &Digest) -> Result<(), LayerFault> {
        let missing = || LayerFault::Unreadable(std::io::ErrorKind::NotFound.into());
        let record = self.index().layers.get(diff_id).cloned().ok_or_else(missing)?;
        if record.damaged {
            return Err(LayerFault::Marked);
        }
        self.content.check_layer(diff_id, record.file_bytes)?;
        if record.verified_in >= self.epoch {
            return Ok(());
        }
        let verified = self.verify_layer(diff_id, &record);
        let noted = match &verified {
            Ok(()) => self.note(diff_id, |record| record.verified_in = self.epoch),
            Err(LayerFault::Altered) => self.note(diff_id, |record| record.damaged = true),
            Err(_) => Ok(()),
        };
        // Should this fail, the layer is verified once more the next time.
        if let Err(error) = noted {
            tracing::warn!(%diff_id, %error, "cannot note that a layer was verified");
        }
        verified
    }

    /// Reads a layer's whole file. One without a recorded digest is believed.
    pub(super) fn verify_layer(&self, diff_id: &Digest, record: &LayerRecord) -> Result<(), LayerFault> {
        match &record.file_digest {
            Some(expected) if !self.content.has_seal(diff_id, expected)? => Err(LayerFault::Altered),
            _ => Ok(()),
        }
    }

    /// Changes a layer's record, if it is still there.
    pub(super) fn note(&self, diff_id: &Digest, change: impl FnOnce(&mut LayerRecord)) -> Result<(), StoreError> {
        let mut index = self.index();
        let Some(mut record) = index.layers.get(diff_id).cloned() else { return Ok(()) };
        change(&mut record);
        self.change(&mut index, vec![Change::PutLayer(diff_id.clone(), record)])
    }
}
