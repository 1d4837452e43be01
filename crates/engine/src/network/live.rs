//! Changes to the networks of a container that runs, and taking up what an earlier engine made.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bollard::models::EndpointSettings;
use hostnet::Namespace;
use hostnet::proxy::ReservedPort;
use proto::Isolation;
use tokio_util::sync::CancellationToken;

use super::attach::{AttachRequest, check};
use super::endpoint::{Endpoint, Endpoints, LiveEndpoint, PublishedPort};
use super::files;
use super::ports::{self, TakenPort};
use super::rates::rates;
use super::record::{Driver, Network};
use super::store::Member;
use super::{Networks, host_error, lock};
use crate::error::{ApiError, ApiResult, chain};

/// How often ports are tried that this engine held until just now.
const RETAKING: u32 = 40;
const PAUSE: Duration = Duration::from_millis(25);

impl Networks {
    /// Connects a container that runs with a further network.
    ///
    /// When: in a blocking thread in a runtime's context; the container's lifecycle is held.
    ///
    /// # Errors
    /// As [`Networks::attach`]; the container is not on the network then.
    pub fn connect(
        &self,
        request: &AttachRequest<'_>,
        endpoints: &mut Endpoints,
        network: &Network,
        asked: EndpointSettings,
    ) -> ApiResult<()> {
        check(network, &asked)?;
        rates(request.isolation, &asked)?;
        let network = self.ensure(network)?;
        let namespace = Namespace::at(self.namespace_path(request.id));
        let live = self.join(request, &network, &asked)?;
        let before = way_out(endpoints);
        let addresses: Vec<IpAddr> = live.addresses().collect();
        let endpoint = Endpoint { network_id: network.id.clone(), asked, live: Some(live) };
        endpoints.all.insert(network.name.clone(), endpoint);
        if let Err(error) = self.plug(&namespace, request, &network, endpoints, None) {
            endpoints.all.remove(&network.name);
            self.store.leave(&network.id, request.id);
            return Err(error);
        }
        let rest = || -> ApiResult<()> {
            let has_server = lock(&self.sandboxes).get(request.id).is_some_and(|sandbox| sandbox.names.is_some());
            if network.has_names() && !has_server {
                self.serve_names(request, &namespace, endpoints, None)?;
                let server = Some(IpAddr::V4(hostnet::dns::ADDRESS));
                let text = files::resolv_conf(&self.files_request(request, endpoints, server));
                std::fs::write(request.dir.join("resolv.conf"), text)
                    .map_err(|error| ApiError::caused("cannot write resolv.conf", &error))?;
            }
            files::change_hosts(request.dir, request.config, &addresses, true)
        };
        let outcome = match rest() {
            Ok(()) => self.follow_way_out(request, endpoints, before.as_deref()),
            Err(error) => Err(error),
        };
        outcome.inspect_err(|_| {
            let reached = way_out(endpoints);
            self.leave(request, endpoints, &network);
            if let Err(left) = self.follow_way_out(request, endpoints, reached.as_deref()) {
                tracing::warn!(id = request.id, "a network that was not finished leaves something: {left}");
            }
        })
    }

    /// Takes a container that runs off a network.
    ///
    /// When: in a blocking thread in a runtime's context; the container's lifecycle is held.
    ///
    /// # Errors
    /// 500 for what the host refuses; the container is off the network all the same.
    pub fn disconnect(
        &self,
        request: &AttachRequest<'_>,
        endpoints: &mut Endpoints,
        network: &Network,
    ) -> ApiResult<()> {
        let before = way_out(endpoints);
        self.leave(request, endpoints, network);
        self.follow_way_out(request, endpoints, before.as_deref())
    }

    fn leave(&self, request: &AttachRequest<'_>, endpoints: &mut Endpoints, network: &Network) {
        let Some(Endpoint { live: Some(live), .. }) = endpoints.all.remove(&network.name) else { return };
        let namespace = Namespace::at(self.namespace_path(request.id));
        if let Err(error) = self.unplug(&namespace, request, &live) {
            tracing::warn!(id = request.id, "a link stays: {}", chain(&error));
        }
        self.store.leave(&network.id, request.id);
        let addresses: Vec<IpAddr> = live.addresses().collect();
        if let Err(error) = files::change_hosts(request.dir, request.config, &addresses, false) {
            tracing::warn!(id = request.id, "{error}");
        }
    }

    fn unplug(
        &self,
        namespace: &Namespace,
        request: &AttachRequest<'_>,
        live: &LiveEndpoint,
    ) -> Result<(), hostnet::NetworkError> {
        match (request.isolation, super::guest::slot_of(live)) {
            (Isolation::Hyperv, Some(slot)) => hostnet::unplug_guest(namespace, slot, &live.host_link),
            _ => hostnet::unplug(&live.host_link),
        }
    }

    /// Routes and published ports go with the way out when that has become another.
    fn follow_way_out(
        &self,
        request: &AttachRequest<'_>,
        endpoints: &mut Endpoints,
        before: Option<&str>,
    ) -> ApiResult<()> {
        let namespace = Namespace::at(self.namespace_path(request.id));
        if request.isolation == Isolation::Hyperv {
            self.guard_guest(&namespace, request.id, endpoints)?;
        }
        if way_out(endpoints).as_deref() == before {
            return Ok(());
        }
        self.route(&namespace, request, endpoints)?;
        let wanted = same_ports(request, endpoints)?;
        self.unpublish(request.id, endpoints)?;
        let mut tries = RETAKING;
        let taken = loop {
            // The tasks that held the ports are just ending.
            match self.take_ports(request, endpoints, &wanted) {
                Err(_) if tries > 0 => std::thread::sleep(PAUSE),
                outcome => break outcome?,
            }
            tries -= 1;
        };
        endpoints.ports = self.publish(request, taken)?;
        Ok(())
    }

    fn unpublish(&self, id: &str, endpoints: &mut Endpoints) -> ApiResult<()> {
        if let Some(sandbox) = lock(&self.sandboxes).get_mut(id) {
            std::mem::replace(&mut sandbox.publishing, CancellationToken::new()).cancel();
            sandbox.ports.clear();
        }
        let publications: Vec<_> =
            std::mem::take(&mut endpoints.ports).iter().filter_map(PublishedPort::publication).collect();
        self.firewall.unpublish(&publications).map_err(|error| host_error(&error))
    }

    /// Takes up a container that an earlier engine started: its addresses are known, its ports held, its names served again.
    ///
    /// When: in a blocking thread in a runtime's context.
    pub fn adopt(&self, request: &AttachRequest<'_>, endpoints: &Endpoints) {
        for endpoint in endpoints.all.values() {
            let Some(live) = &endpoint.live else { continue };
            self.store.take_known(&endpoint.network_id, live.addresses());
            let member = Member { name: request.name.to_owned(), endpoint: live.clone() };
            self.store.join(&endpoint.network_id, request.id, member);
        }
        if !endpoints.sandbox {
            return;
        }
        let mut taken = Vec::new();
        for port in &endpoints.ports {
            match ReservedPort::take(port.protocol, port.host) {
                Ok(socket) => taken.push(TakenPort { port: port.clone(), socket }),
                Err(error) => {
                    // The kernel still leads it to the container.
                    tracing::warn!(id = request.id, port = %port.host, %error, "cannot hold a published port again");
                }
            }
        }
        if let Err(error) = self.publish(request, taken) {
            tracing::error!(id = request.id, "cannot publish a container's ports again: {error}");
        }
        let namespace = Namespace::at(self.namespace_path(request.id));
        if self.is_named(endpoints)
            && let Err(error) = self.serve_names(request, &namespace, endpoints, None)
        {
            tracing::error!(id = request.id, "cannot serve a container's names again: {error}");
        }
    }

    /// Finds a network that a container can be connected with or disconnected from.
    ///
    /// # Errors
    /// 400, in dockerd's words, for the host's network and for none.
    pub fn connectable(&self, reference: &str) -> ApiResult<Arc<Network>> {
        let network = self.store.find(reference)?;
        match network.driver {
            Driver::Bridge => Ok(network),
            Driver::Host => Err(ApiError::invalid(
                "container cannot be disconnected from host network or connected to host network",
            )),
            Driver::Null => Err(ApiError::invalid(
                "container cannot be connected to multiple networks with one of the networks in private (none) mode",
            )),
        }
    }
}

fn way_out(endpoints: &Endpoints) -> Option<String> {
    endpoints.way_out().map(|(name, _)| name.clone())
}

/// What the container publishes, each at the number that it has by now.
fn same_ports(request: &AttachRequest<'_>, endpoints: &Endpoints) -> ApiResult<Vec<ports::WantedPort>> {
    let mut wanted = ports::wanted_ports(request.host, request.config.exposed_ports.as_deref().unwrap_or_default())?;
    for port in &mut wanted {
        let has = |published: &&PublishedPort| {
            (published.container_port, published.protocol) == (port.container_port, port.protocol)
                && port.candidates.as_ref().is_none_or(|range| range.contains(&published.host.port()))
        };
        if let Some(published) = endpoints.ports.iter().find(has) {
            port.candidates = Some(published.host.port()..=published.host.port());
        }
    }
    Ok(wanted)
}
