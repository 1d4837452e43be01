//! Labels that an image must not hand to a container.

use std::collections::HashMap;

/// Namespaces that containerd, its Kubernetes side and this engine give a meaning of their own: an image that sets
/// them could steer whoever reads a container's labels (CVE-2026-53488).
const RESERVED_PREFIXES: [&str; 3] = ["containerd.io/", "io.cri-containerd", "dev.bulkhead"];

/// True if only the engine may set this label.
#[must_use]
pub fn is_reserved_label(key: &str) -> bool {
    RESERVED_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}

/// The labels of an image that a container inherits: all but the reserved ones.
#[must_use]
pub fn inheritable_labels(labels: &HashMap<String, String>) -> HashMap<String, String> {
    labels.iter().filter(|(key, _)| !is_reserved_label(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_labels_stay_behind() {
        let all = [
            "maintainer",
            "containerd.io/restart.status",
            "io.cri-containerd.kind",
            "dev.bulkhead.user",
            "containerd.iox",
        ];
        let labels = all.iter().map(|key| ((*key).to_owned(), "x".to_owned())).collect();
        let mut kept: Vec<_> = inheritable_labels(&labels).into_keys().collect();
        kept.sort();
        assert_eq!(kept, ["containerd.iox", "maintainer"]);
    }
}
