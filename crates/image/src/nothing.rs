//! What `FROM scratch` begins with: an image without layers, and the empty layer that such images are mounted from.

use std::sync::LazyLock;

use proto::Digest;

use crate::compression::digest_of;
use crate::config::host_architecture;

/// A tar stream without entries.
pub(crate) const EMPTY_TAR: [u8; 1024] = [0; 1024];

/// The layer of the empty tar stream. Docker's images never list it. Source: moby, layer, `DigestSHA256EmptyTar`.
pub(crate) fn layer() -> &'static Digest {
    static ID: LazyLock<Digest> = LazyLock::new(|| digest_of(&EMPTY_TAR));
    &ID
}

/// The configuration of the image that has nothing. It is always the same, so that the build cache knows it again.
pub(crate) fn config_json() -> String {
    let architecture = host_architecture();
    format!(
        r#"{{"architecture":"{architecture}","config":{{}},"os":"linux","rootfs":{{"type":"layers","diff_ids":[]}}}}"#
    )
}

/// That image's id. It is never listed.
pub(crate) fn image_id() -> &'static Digest {
    static ID: LazyLock<Digest> = LazyLock::new(|| digest_of(config_json().as_bytes()));
    &ID
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_empty_layer_is_dockers() {
        let known = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";
        assert_eq!(super::layer().as_str(), known);
    }
}
