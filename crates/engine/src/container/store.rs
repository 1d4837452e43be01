//! Every container of an engine, by id and name.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use proto::ContainerId;

use super::{Container, lock};
use crate::error::{ApiError, ApiResult};

#[derive(Default)]
struct Index {
    by_id: BTreeMap<String, Arc<Container>>,
    /// Names that are taken, also by containers that are just being made.
    names: HashMap<String, ContainerId>,
}

/// The containers. Shape: an id, a name and a container belong together at every moment.
#[derive(Default)]
pub struct ContainerStore {
    index: Mutex<Index>,
}

/// A name that belongs to a container that is being made; free again on drop, unless the container was added.
pub struct ReservedName<'a> {
    store: &'a ContainerStore,
    name: String,
    kept: bool,
}

impl Drop for ReservedName<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.store.index().names.remove(&self.name);
        }
    }
}

impl ContainerStore {
    fn index(&self) -> MutexGuard<'_, Index> {
        lock(&self.index)
    }

    /// Takes a name for a container that is being made.
    ///
    /// # Errors
    /// 409, in dockerd's words, when it belongs to another one.
    pub fn reserve(&self, name: &str, id: &ContainerId) -> ApiResult<ReservedName<'_>> {
        let mut index = self.index();
        claim(&mut index, name, id)?;
        Ok(ReservedName { store: self, name: name.to_owned(), kept: false })
    }

    /// Adds a container whose name was reserved.
    pub fn add(&self, container: Arc<Container>, mut name: ReservedName<'_>) {
        name.kept = true;
        self.index().by_id.insert(container.id.as_str().to_owned(), container);
    }

    /// Adds a container that an earlier engine made.
    ///
    /// # Errors
    /// 409 when its name is taken.
    pub fn add_known(&self, container: Arc<Container>) -> ApiResult<()> {
        let name = self.reserve(&container.name(), &container.id)?;
        self.add(container, name);
        Ok(())
    }

    /// Gives a container another name; the old one is free then.
    ///
    /// # Errors
    /// 409 when the new one is taken.
    pub fn rename(&self, container: &Container, name: &str) -> ApiResult<()> {
        let mut index = self.index();
        claim(&mut index, name, &container.id)?;
        let old = std::mem::replace(&mut container.record().name, name.to_owned());
        index.names.remove(&old);
        Ok(())
    }

    /// Forgets a container; its name is free then.
    pub fn remove(&self, container: &Container) {
        let mut index = self.index();
        index.by_id.remove(container.id.as_str());
        index.names.remove(&container.name());
    }

    /// Finds by full id, by name (a leading slash is allowed), or by the beginning of one id.
    ///
    /// # Errors
    /// 404 when there is none, 400 when the beginning fits several.
    pub fn find(&self, reference: &str) -> ApiResult<Arc<Container>> {
        let index = self.index();
        if let Some(container) = index.by_id.get(reference) {
            return Ok(Arc::clone(container));
        }
        let name = reference.strip_prefix('/').unwrap_or(reference);
        if let Some(container) = index.names.get(name).and_then(|id| index.by_id.get(id.as_str())) {
            return Ok(Arc::clone(container));
        }
        let fits = |(id, _): &(&String, &Arc<Container>)| !reference.is_empty() && id.starts_with(reference);
        let mut found = index.by_id.range(reference.to_owned()..).take_while(fits).map(|(_, container)| container);
        match (found.next(), found.next()) {
            (Some(container), None) => Ok(Arc::clone(container)),
            (None, _) => Err(ApiError::not_found(format!("No such container: {reference}"))),
            (Some(_), Some(_)) => {
                Err(ApiError::invalid(format!("multiple IDs found with provided prefix: {reference}")))
            }
        }
    }

    /// Every container, the newest first.
    pub fn all(&self) -> Vec<Arc<Container>> {
        let mut all: Vec<_> = self.index().by_id.values().cloned().collect();
        all.sort_by_cached_key(|container| std::cmp::Reverse(container.record().created));
        all
    }

    /// The name is free.
    pub fn is_free(&self, name: &str) -> bool {
        !self.index().names.contains_key(name)
    }
}

fn claim(index: &mut Index, name: &str, id: &ContainerId) -> ApiResult<()> {
    if let Some(owner) = index.names.get(name) {
        return Err(ApiError::conflict(format!(
            "Conflict. The container name \"/{name}\" is already in use by container \"{owner}\". You have to remove (or rename) that container to be able to reuse that name."
        )));
    }
    index.names.insert(name.to_owned(), id.clone());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::record;
    use super::*;

    fn store(containers: &[(&str, &str)]) -> ContainerStore {
        let store = ContainerStore::default();
        for (id, name) in containers {
            store.add_known(Arc::new(Container::new(record(id, name), "/nowhere".into()).unwrap())).unwrap();
        }
        store
    }

    #[test]
    fn a_container_is_found_by_id_name_and_prefix() {
        let store = store(&[("abc1", "web"), ("abd2", "abc")]);
        for (reference, id) in [("abc1", "abc1"), ("/web", "abc1"), ("abc", "abd2"), ("abd", "abd2")] {
            assert_eq!(store.find(reference).unwrap().id.as_str(), id, "{reference}");
        }
        for (reference, status) in [("ab", 400), ("x", 404), ("", 404)] {
            assert_eq!(store.find(reference).err().unwrap().http_status(), status, "{reference}");
        }
    }

    #[test]
    fn a_name_belongs_to_one_and_is_free_after_failure() {
        let store = store(&[("abc1", "web")]);
        let id = "new1".parse().unwrap();
        let taken = store.reserve("web", &id).err().unwrap().message;
        assert!(taken.starts_with("Conflict. The container name \"/web\" is already in use by container \"abc1\"."));
        drop(store.reserve("db", &id).unwrap());
        assert!(store.is_free("db"));
        let web = store.find("web").unwrap();
        store.rename(&web, "www").unwrap();
        assert!(store.is_free("web") && store.find("www").is_ok());
        store.remove(&web);
        assert!(store.is_free("www") && store.all().is_empty());
    }
}
