//! `/etc/resolv.conf`: read from the host, written for containers.

use std::net::IpAddr;

/// What a resolv.conf says. Source: resolv.conf(5).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// Name servers.
    pub servers: Vec<IpAddr>,
    /// Domains in which names are looked for.
    pub search: Vec<String>,
    /// Options, such as `ndots:0`.
    pub options: Vec<String>,
}

/// Where systemd's resolver keeps the servers that it asks itself, when the host's file names only systemd.
const BEHIND_SYSTEMD: &str = "/run/systemd/resolve/resolv.conf";

impl ResolvConf {
    /// The host's. With a server of systemd's alone, what is behind it.
    #[must_use]
    pub fn of_host() -> Self {
        let read = |path: &str| Self::parse(&std::fs::read_to_string(path).unwrap_or_default());
        let host = read("/etc/resolv.conf");
        let only_systemd = host.servers == [IpAddr::from([127, 0, 0, 53])];
        let behind = read(BEHIND_SYSTEMD);
        if only_systemd && !behind.servers.is_empty() { behind } else { host }
    }

    /// Reads a file's text; what is not understood is left out.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut this = Self::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_whitespace();
            let key = words.next();
            match key {
                Some("nameserver") => this.servers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok())),
                Some("search" | "domain") => this.search = words.map(str::to_owned).collect(),
                Some("options") => this.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        this
    }

    /// Without servers that only the host itself reaches.
    #[must_use]
    pub fn without_loopback(mut self) -> Self {
        self.servers.retain(|server| !server.is_loopback());
        self
    }

    /// The file's text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text: String = self.servers.iter().map(|server| format!("nameserver {server}\n")).collect();
        if !self.search.is_empty() {
            text.push_str(&format!("search {}\n", self.search.join(" ")));
        }
        if !self.options.is_empty() {
            text.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_and_written() {
        let text = "# x\nnameserver 10.0.0.1 ; y\nnameserver fe80::1%eth0\nnameserver 127.0.0.1\ndomain a\nsearch b c\noptions ndots:2\n";
        let parsed = ResolvConf::parse(text);
        assert_eq!((parsed.servers.len(), parsed.search.len()), (2, 2));
        let written = parsed.without_loopback().render();
        assert_eq!(written, "nameserver 10.0.0.1\nsearch b c\noptions ndots:2\n");
    }
}
