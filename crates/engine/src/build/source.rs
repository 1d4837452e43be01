//! The images that a build begins from: earlier stages, images that are here, images of registries.

use image::{Image, ImageHold, Reference};

use super::builder::Builder;
use super::output::Failure;
use crate::error::{ApiError, chain};
use crate::images::{login_for, pull_for_build};

impl Builder {
    /// The image by this name, which is pulled if it is not here, or if the client wants that.
    pub(super) async fn image_by_name(&self, name: &str) -> Result<(Image, ImageHold), Failure> {
        let store = &self.engine.images;
        if !self.options.pull
            && let Ok(image) = store.resolve(name)
            && let Some(hold) = store.hold(&image.id)
        {
            return Ok((image, hold));
        }
        let reference: Reference =
            name.parse().map_err(|error: image::InvalidReference| ApiError::invalid(chain(&error)))?;
        let reference = match reference.digest() {
            None if reference.tag().is_none() => {
                reference.with_tag("latest").map_err(|error| ApiError::invalid(chain(&error)))?
            }
            _ => reference,
        };
        let login = login_for(&self.logins, &reference)?;
        let output = self.output.clone();
        let pulling = pull_for_build(&self.engine, &reference, login, move |line| output.offer(&line));
        tokio::select! {
            pulled = pulling => pulled?,
            () = self.cancelled.cancelled() => return Err(Self::cancelled_failure()),
        }
        let image =
            store.resolve(&reference.to_string()).map_err(|error| ApiError::new(error.kind(), chain(&error)))?;
        let hold = store.hold(&image.id).ok_or_else(|| ApiError::not_found(format!("No such image: {name}")))?;
        Ok((image, hold))
    }

    /// What `--from` names: an earlier stage by name or number, or an image.
    pub(super) async fn image_of_copy(&self, from: &str) -> Result<(Image, ImageHold), Failure> {
        let invalid = |mut failure: Failure| {
            failure.error = failure.error.context(format!("invalid from flag value {from}"));
            failure
        };
        let by_name = self.done.iter().find(|stage| stage.name.as_deref() == Some(&from.to_lowercase()[..]));
        let stage = match (by_name, from.parse::<usize>()) {
            (Some(stage), _) => Some(stage),
            (None, Ok(number)) => {
                let stage = self.done.get(number);
                Some(stage.ok_or_else(|| invalid(ApiError::invalid("index out of bounds").into()))?)
            }
            (None, Err(_)) => None,
        };
        let Some(stage) = stage else { return self.image_by_name(from).await.map_err(invalid) };
        let hold = stage.image.as_ref().and_then(|image| Some((image.clone(), self.engine.images.hold(&image.id)?)));
        hold.ok_or_else(|| invalid(ApiError::invalid("the stage has no image").into()))
    }
}
