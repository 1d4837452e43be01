//! `template` and `probe`: what the engine asks about utility VMs without linking the crate that makes them.

use std::path::Path;

use anyhow::{Context, bail};
use proto::TemplateId;
use proto::control::BackendChoice;
use uvm::{GuestImage, TemplateStore};

use crate::flags::Flags;

fn backend(flags: &Flags) -> anyhow::Result<BackendChoice> {
    Ok(match flags.backend.as_deref() {
        None | Some("auto") => BackendChoice::Auto,
        Some("kvm") => BackendChoice::Kvm,
        Some("qemukvm" | "qemu-kvm") => BackendChoice::QemuKvm,
        Some("qemutcg" | "qemu-tcg") => BackendChoice::QemuTcg,
        Some(other) => bail!("invalid backend {other:?}: choose auto, kvm, qemukvm or qemutcg"),
    })
}

fn folder<'a>(given: Option<&'a std::path::PathBuf>, flag: &str) -> anyhow::Result<&'a Path> {
    given.map(std::path::PathBuf::as_path).with_context(|| format!("{flag} is needed"))
}

/// Runs `template ls|create|rm|prune` and answers JSON.
///
/// Shape: `ls` an array of [`proto::control::TemplateSummary`], `create` one of them, `rm` and `prune` an array of the
/// identifiers removed. `rm` takes an identifier or a beginning of one that fits one template only.
///
/// # Errors
/// Flags are missing, or the store says no.
pub fn run(flags: &Flags, words: &[&str]) -> anyhow::Result<String> {
    let store = TemplateStore::open(folder(flags.store.as_ref(), "-store")?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let image = || anyhow::Ok(GuestImage::open(folder(flags.guest_image.as_ref(), "-guest-image")?)?);
    runtime.block_on(async {
        match words {
            ["ls"] => {
                // What is current is not known without the image, and then nothing is.
                let current = current(flags, &store).await?;
                Ok(serde_json::to_string(&store.list(current.as_ref())?)?)
            }
            ["create"] => Ok(serde_json::to_string(&store.create(&image()?, backend(flags)?).await?)?),
            ["rm", text] => {
                let id = find(&store, text)?;
                store.remove(&id).await?;
                Ok(serde_json::to_string(&[id])?)
            }
            ["prune"] => {
                let keep = store.current(&image()?, backend(flags)?).await?;
                Ok(serde_json::to_string(&store.prune(Some(&keep)).await?)?)
            }
            _ => bail!("usage: template ls|create|rm ID|prune"),
        }
    })
}

async fn current(flags: &Flags, store: &TemplateStore) -> anyhow::Result<Option<TemplateId>> {
    let choice = backend(flags)?;
    let Some(Ok(image)) = flags.guest_image.as_deref().map(GuestImage::open) else { return Ok(None) };
    Ok(store.current(&image, choice).await.ok())
}

fn find(store: &TemplateStore, text: &str) -> anyhow::Result<TemplateId> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let mut fitting =
        store.list(None)?.into_iter().map(|summary| summary.id).filter(|id| id.as_str().starts_with(text));
    match (fitting.next(), fitting.next()) {
        (Some(id), None) if !text.is_empty() => Ok(id),
        (Some(_), _) => bail!("several templates begin with {text:?}"),
        (None, _) => bail!("no such template: {text}"),
    }
}

/// Runs `probe` and answers a [`proto::control::HostProbe`] in JSON. With `--store`, what starts have found out is not asked again.
///
/// # Errors
/// Flags are missing; there can be no store.
pub fn probe(flags: &Flags) -> anyhow::Result<String> {
    let store = flags.store.as_deref().map(TemplateStore::open).transpose()?;
    let probe = uvm::probe(folder(flags.guest_image.as_ref(), "-guest-image")?, backend(flags)?, store.as_ref());
    Ok(serde_json::to_string(&probe)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_have_names() {
        let named = |name: &str| backend(&Flags { backend: Some(name.to_owned()), ..Flags::default() });
        assert_eq!(backend(&Flags::default()).unwrap(), BackendChoice::Auto);
        assert_eq!(named("kvm").unwrap(), BackendChoice::Kvm);
        assert_eq!(named("qemukvm").unwrap(), BackendChoice::QemuKvm);
        assert_eq!(named("qemu-tcg").unwrap(), BackendChoice::QemuTcg);
        assert!(named("xen").unwrap_err().to_string().contains("choose"));
    }
}
