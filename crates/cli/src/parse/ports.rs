//! `--publish` and `--expose`, which the engine answers for.

use std::collections::HashMap;

use bollard::models::{PortBinding, PortMap};

use crate::error::{CliError, CliResult};

/// Reads `[ip:][hostPort:]containerPort[/protocol]` of every `--publish`.
///
/// # Errors
/// [`CliError::Usage`].
pub fn bindings(list: &[String]) -> CliResult<PortMap> {
    let mut map: PortMap = HashMap::new();
    for text in list {
        let invalid = || CliError::Usage(format!("invalid publish: {text:?}"));
        let fields: Vec<&str> = text.rsplitn(3, ':').collect();
        let inside = exposed(fields.first().copied().unwrap_or_default()).ok_or_else(invalid)?;
        let host_port = fields.get(1).copied().unwrap_or_default();
        if !host_port.is_empty() && host_port.parse::<u16>().is_err() {
            return Err(invalid());
        }
        let binding = PortBinding {
            host_ip: Some(fields.get(2).copied().unwrap_or_default().to_owned()),
            host_port: Some(host_port.to_owned()),
        };
        map.entry(inside).or_default().get_or_insert_default().push(binding);
    }
    Ok(map)
}

/// A port with its protocol, such as `80/tcp`; nothing for what is no port.
#[must_use]
pub fn exposed(text: &str) -> Option<String> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let known = matches!(protocol, "tcp" | "udp" | "sctp");
    (port.parse::<u16>().is_ok_and(|port| port > 0) && known).then(|| format!("{port}/{protocol}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_have_protocol_and_host_side() {
        let map = bindings(&["127.0.0.1:8080:80".into(), "53/udp".into(), "81:80".into()]).unwrap();
        let web = map["80/tcp"].as_ref().unwrap();
        assert_eq!(
            (web.len(), web[0].host_ip.as_deref(), web[1].host_port.as_deref()),
            (2, Some("127.0.0.1"), Some("81"))
        );
        assert_eq!(map["53/udp"].as_ref().unwrap()[0].host_port.as_deref(), Some(""));
        for bad in ["x", "80/odd", "0", "1:2:3:x", "99999"] {
            assert!(bindings(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
