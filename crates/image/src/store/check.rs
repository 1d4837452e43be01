//! Verifying everything that is stored, and repairing what can be.

use std::collections::BTreeMap;
use std::path::Path;

use proto::Digest;

use super::{ImageStore, Index, StoreError};
use crate::compression::digest_of;
use crate::content::{ContentStore, LayerFault};
use crate::failpoint;
use crate::records::{Change, LayerRecord};

/// What becomes of something that was found wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remedy {
    /// It is removed, or was: nobody needs it.
    Remove,
    /// Its image is to be pulled by this name; only what is damaged is fetched again.
    Pull(String),
    /// Its image is to be loaded, imported or made again.
    Load,
}

/// Something wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// `layer`, `image`, `name` or `file`.
    pub kind: &'static str,
    /// Digest, name or path.
    pub subject: String,
    /// What is wrong with it.
    pub fault: String,
    /// The images that need it, by short id or name.
    pub images: Vec<String>,
    /// What helps.
    pub remedy: Remedy,
    /// It was repaired as far as the store can: removed, or marked so that the next pull or load makes it anew.
    pub repaired: bool,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Layers that were read.
    pub layers: u64,
    /// Bytes of their files.
    pub layer_bytes: u64,
    /// Images whose configuration was read.
    pub images: u64,
    /// What is wrong, if anything.
    pub findings: Vec<Finding>,
}

impl ImageStore {
    /// Reads every layer, configuration, name and file of the store and says what is wrong; with `repair` removes what
    /// nobody needs and marks damaged layers, so that the next pull or load of their image makes them anew.
    ///
    /// When: others may use the store meanwhile. Takes as long as reading every layer takes.
    ///
    /// # Errors
    /// [`StoreError`]: the records or the folder cannot be read, or a repair cannot be written. What is wrong with a single
    /// layer is a finding and no error.
    pub fn check(&self, repair: bool) -> Result<CheckReport, StoreError> {
        let mut report = CheckReport::default();
        self.check_layers(&mut report, repair)?;
        self.check_images(&mut report, repair)?;
        self.check_files(&mut report, repair)?;
        failpoint::reach("check.end");
        Ok(report)
    }

    fn check_layers(&self, report: &mut CheckReport, repair: bool) -> Result<(), StoreError> {
        let layers: Vec<(Digest, LayerRecord)> =
            self.index().layers.iter().map(|(id, record)| (id.clone(), record.clone())).collect();
        for (diff_id, record) in layers {
            report.layers += 1;
            report.layer_bytes += record.file_bytes;
            let looked = self.content.check_layer(&diff_id, record.file_bytes);
            let fault = match looked.and_then(|()| self.verify_layer(&diff_id, &record)) {
                Err(fault) => Some(describe(&fault)),
                // A file that is well in spite of its mark was replaced by hand.
                Ok(()) if record.damaged && repair => {
                    self.note(&diff_id, |record| record.damaged = false)?;
                    None
                }
                Ok(()) => record.damaged.then(|| "an earlier check found it damaged; it reads well now".to_owned()),
            };
            let (fault, users) = {
                let index = self.index();
                // Freed, or made anew, since the list was made.
                if index.layers.get(&diff_id) != Some(&record) {
                    continue;
                }
                let users = users_of(&index, &diff_id);
                let unused = || users.is_empty() && !index.pins.contains_key(&diff_id);
                (fault.or_else(|| unused().then(|| "no image has it".to_owned())), users)
            };
            if let Some(fault) = fault {
                report.findings.push(self.layer_finding(&diff_id, fault, &users, repair)?);
            }
        }
        Ok(())
    }

    fn layer_finding(
        &self,
        diff_id: &Digest,
        fault: String,
        users: &[Digest],
        repair: bool,
    ) -> Result<Finding, StoreError> {
        let remedy = match users {
            [] => Remedy::Remove,
            users => {
                users.iter().find_map(|id| self.find_digests(id).into_iter().next()).map_or(Remedy::Load, Remedy::Pull)
            }
        };
        if repair && users.is_empty() {
            let mut index = self.index();
            if users_of(&index, diff_id).is_empty() && !index.pins.contains_key(diff_id) {
                self.change(&mut index, vec![Change::DropLayer(diff_id.clone())])?;
                self.content.discard(diff_id)?;
            }
        } else if repair {
            self.note(diff_id, |record| record.damaged = true)?;
            failpoint::reach("check.marked");
        }
        let images = users.iter().map(|id| self.shown_name(id)).collect();
        Ok(Finding { kind: "layer", subject: diff_id.to_string(), fault, images, remedy, repaired: repair })
    }

    fn check_images(&self, report: &mut CheckReport, repair: bool) -> Result<(), StoreError> {
        let recorded = self.records.read()?;
        let layers: BTreeMap<_, _> = recorded.layers.into_iter().collect();
        let images: BTreeMap<_, _> = recorded.images.into_iter().collect();
        for (id, record) in &images {
            report.images += 1;
            let parsed = crate::config::parse_own(record.config.as_bytes());
            let fault = match parsed {
                _ if digest_of(record.config.as_bytes()) != *id => "its configuration has another digest".to_owned(),
                Err(error) => format!("its configuration cannot be read: {error}"),
                Ok(parsed) => match parsed.diff_ids.iter().find(|diff_id| !layers.contains_key(*diff_id)) {
                    Some(diff_id) => format!("its layer {diff_id} is not recorded"),
                    None => continue,
                },
            };
            let (subject, images) = (id.to_string(), vec![self.shown_name(id)]);
            report.findings.push(Finding {
                kind: "image",
                subject,
                fault,
                images,
                remedy: Remedy::Load,
                repaired: false,
            });
        }
        for (name, id) in recorded.names.into_iter().filter(|(_, id)| !images.contains_key(id)) {
            let mut index = self.index();
            if repair && !index.images.contains_key(&id) {
                self.change(&mut index, vec![Change::DropName(name.clone())])?;
            }
            let fault = format!("it leads to {id}, which is not there");
            let finding = Finding {
                kind: "name",
                subject: name,
                fault,
                images: Vec::new(),
                remedy: Remedy::Remove,
                repaired: repair,
            };
            report.findings.push(finding);
        }
        Ok(())
    }

    fn check_files(&self, report: &mut CheckReport, repair: bool) -> Result<(), StoreError> {
        // Under the lock no batch is between its files and its records.
        let index = self.index();
        let unrecorded = self.content.find_unrecorded(|diff_id| index.layers.contains_key(diff_id))?;
        for path in unrecorded {
            if repair {
                ContentStore::discard_unrecorded(&path)?;
            }
            report.findings.push(orphan(&path, repair));
        }
        Ok(())
    }

    /// An image's first name, or its short id.
    fn shown_name(&self, id: &Digest) -> String {
        self.find_tags(id).into_iter().next().unwrap_or_else(|| id.hex().chars().take(12).collect())
    }
}

fn orphan(path: &Path, repaired: bool) -> Finding {
    Finding {
        kind: "file",
        subject: path.display().to_string(),
        fault: "no record knows it".to_owned(),
        images: Vec::new(),
        remedy: Remedy::Remove,
        repaired,
    }
}

fn users_of(index: &Index, diff_id: &Digest) -> Vec<Digest> {
    let users = index.images.values().filter(|image| image.diff_ids.contains(diff_id));
    users.map(|image| image.id.clone()).collect()
}

/// A fault with what the system says about it.
fn describe(fault: &LayerFault) -> String {
    match std::error::Error::source(fault) {
        Some(cause) => format!("{fault}: {cause}"),
        None => fault.to_string(),
    }
}
