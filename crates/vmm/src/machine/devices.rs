//! The machine's virtio devices. Their numbers, pages and interrupts follow from the machine's size: the console, the disk
//! slots in order, the network slots in order, entropy, the balloon, the file system, the socket.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, VmFd};
use rustix::event::epoll::EventFlags;

use super::{MachineError, kvm, system};
use crate::bus::Registers;
use crate::jail::filter::Role;
use crate::layout::{virtio_gsi, virtio_page};
use crate::memory::GuestMemory;
use crate::protocol::{DiskRates, MachineSpec, NetworkRates};
use crate::state::{DevicesState, StateError};
use crate::virtio::balloon::Balloon;
use crate::virtio::block::Block;
use crate::virtio::block::disk::{Disk, DiskError};
use crate::virtio::block::limits::Limits;
use crate::virtio::console::Console;
use crate::virtio::device::VirtioDevice;
use crate::virtio::entropy::Entropy;
use crate::virtio::event_loop::EventLoop;
use crate::virtio::file_system::FileSystem;
use crate::virtio::network::Network;
use crate::virtio::socket::Socket;
use crate::virtio::transport::{QUEUE_NOTIFY, Transport, UnfitState};

/// Devices that are no slots and that every machine has: console, entropy, balloon.
const OTHERS: u32 = 3;

/// What is behind the devices of a new machine.
#[derive(Debug)]
pub(crate) struct Behind {
    /// The console's port.
    pub(crate) port: OwnedFd,
    /// The way to the file system's server.
    pub(crate) files: OwnedFd,
    /// The way to the host's programs that speak to the guest's.
    pub(crate) host: OwnedFd,
}

/// All of a machine's devices.
pub(super) struct Devices {
    console: Arc<Transport<Console>>,
    /// The sockets of console and file system, watched by their thread.
    ends: [OwnedFd; 2],
    blocks: Vec<Arc<Transport<Block>>>,
    networks: Vec<Arc<Transport<Network>>>,
    entropy: Arc<Transport<Entropy>>,
    balloon: Arc<Transport<Balloon>>,
    /// One or none.
    files: Vec<Arc<Transport<FileSystem>>>,
    /// One or none.
    sockets: Vec<Arc<Transport<Socket>>>,
    spec: MachineSpec,
}

impl Devices {
    /// New devices with nothing behind them but their sockets.
    pub(super) fn new(spec: &MachineSpec, memory: &Arc<GuestMemory>, behind: Behind) -> Result<Self, MachineError> {
        let Behind { port, files, host } = behind;
        let others = OTHERS + u32::from(spec.has_file_system()) + u32::from(spec.has_socket());
        let count = spec.disk_slots.saturating_add(spec.network_slots).saturating_add(others);
        if usize::try_from(count - 1).ok().and_then(virtio_gsi).is_none() {
            return Err(MachineError::Size { what: "devices", count });
        }
        let failed = system("make a device");
        for socket in [&port, &host] {
            rustix::io::ioctl_fionbio(socket, true).map_err(|error| failed(error.into()))?;
        }
        let ends = [port.try_clone().map_err(&failed)?, files.try_clone().map_err(&failed)?];
        let blocks =
            (0..spec.disk_slots).map(|slot| device(Block::new(slot, !spec.is_writable(slot), spec.disk_bytes), memory));
        let blocks = blocks.collect::<Result<_, _>>()?;
        let networks =
            (0..spec.network_slots).map(|slot| device(Network::new(u8::try_from(slot).unwrap_or(u8::MAX)), memory));
        let networks = networks.collect::<Result<_, _>>()?;
        let (console, entropy) = (device(Console::new(port), memory)?, device(Entropy, memory)?);
        let balloon = device(Balloon, memory)?;
        let files = spec.has_file_system().then(|| device(FileSystem::new(files), memory));
        let files = files.transpose()?.into_iter().collect();
        let mut sockets = Vec::new();
        if spec.has_socket() {
            sockets.push(device(Socket::new(host).map_err(&failed)?, memory)?);
        }
        Ok(Self { console, ends, blocks, networks, entropy, balloon, files, sockets, spec: spec.clone() })
    }

    /// Number of devices.
    pub(super) fn count(&self) -> usize {
        self.blocks.len() + self.networks.len() + OTHERS as usize + self.files.len() + self.sockets.len()
    }

    /// Their registers, page by page.
    pub(super) fn pages(&self) -> Vec<Arc<dyn Registers>> {
        let mut pages: Vec<Arc<dyn Registers>> = vec![Arc::clone(&self.console) as _];
        pages.extend(self.blocks.iter().map(|block| Arc::clone(block) as _));
        pages.extend(self.networks.iter().map(|network| Arc::clone(network) as _));
        pages.push(Arc::clone(&self.entropy) as _);
        pages.push(Arc::clone(&self.balloon) as _);
        pages.extend(self.files.iter().map(|files| Arc::clone(files) as _));
        pages.extend(self.sockets.iter().map(|socket| Arc::clone(socket) as _));
        pages
    }

    /// Connects kicks and interrupts with KVM, in the order of [`Devices::pages`].
    pub(super) fn connect(&self, vm: &VmFd) -> Result<(), MachineError> {
        let mut number = 0..;
        let mut next = || number.next().unwrap_or(usize::MAX);
        connect(vm, next(), &self.console)?;
        self.blocks.iter().try_for_each(|block| connect(vm, next(), block))?;
        self.networks.iter().try_for_each(|network| connect(vm, next(), network))?;
        connect(vm, next(), &self.entropy)?;
        connect(vm, next(), &self.balloon)?;
        self.files.iter().try_for_each(|files| connect(vm, next(), files))?;
        self.sockets.iter().try_for_each(|socket| connect(vm, next(), socket))
    }

    /// Few threads, since each costs every fork a stack and a filter: one for the disks that are written, one for those that are only
    /// read, one for all networks ([`Devices::attach`]), one for all others.
    pub(super) fn start_threads(&self) -> io::Result<()> {
        let mut quick = EventLoop::new()?;
        quick.serve(&self.console)?;
        quick.serve(&self.entropy)?;
        quick.serve(&self.balloon)?;
        let console = Arc::clone(&self.console);
        // Edges suffice: whoever meets a socket's end looks again when there is something new on either side.
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let [port, server] = &self.ends;
        quick.watch(port.as_fd(), flags, move || console.turn(Console::socket_ready))?;
        for files in &self.files {
            quick.serve(files)?;
            let files = Arc::clone(files);
            quick.watch(server.as_fd(), flags, move || files.turn(FileSystem::socket_ready))?;
        }
        for socket in &self.sockets {
            quick.serve(socket)?;
            let (served, watch) = (Arc::clone(socket), socket.change(|socket| socket.watch().try_clone_to_owned())?);
            quick.watch(watch.as_fd(), EventFlags::IN | EventFlags::ET, move || served.turn(Socket::go_on))?;
            quick.keep(watch.into());
        }
        quick.spawn("devices", Role::Devices)?;
        // A flush of the disk that is written may take long: what only reads does not wait for it.
        let slots = (0..).zip(&self.blocks);
        let (scratch, layers): (Vec<_>, Vec<_>) = slots.partition(|(slot, _)| self.spec.is_writable(*slot));
        for (name, blocks) in [("scratch", scratch), ("layers", layers)] {
            if !blocks.is_empty() {
                let mut disks = EventLoop::new()?;
                blocks.iter().try_for_each(|(_, block)| disks.serve(block))?;
                disks.spawn(name, Role::Disk)?;
            }
        }
        Ok(())
    }

    /// Puts a tap behind each network slot, or behind none, and starts the thread of all networks. When: once.
    pub(super) fn attach(&self, taps: Vec<File>) -> Result<(), MachineError> {
        for (network, tap) in self.networks.iter().zip(taps) {
            network.change(|network| network.attach(tap)).map_err(system("set up a tap"))?;
        }
        self.start_network().map_err(system("start a device's thread"))
    }

    fn start_network(&self) -> io::Result<()> {
        if self.networks.is_empty() {
            return Ok(());
        }
        let mut frames = EventLoop::new()?;
        for network in &self.networks {
            frames.serve(network)?;
            if let Some(tap) = network.change(|network| network.tap()).transpose()? {
                let receiver = Arc::clone(network);
                // Edges suffice here, too: new buffers of the guest are a kick.
                let ready = move || receiver.turn(Network::receive);
                frames.watch(tap.as_fd(), EventFlags::IN | EventFlags::ET, ready)?;
                frames.keep(tap);
            }
        }
        frames.spawn("net", Role::Network)
    }

    /// The machine runs, or stands.
    pub(super) fn set_running(&self, running: bool) {
        self.console.set_running(running);
        self.blocks.iter().for_each(|block| block.set_running(running));
        self.networks.iter().for_each(|network| network.set_running(running));
        self.entropy.set_running(running);
        self.balloon.set_running(running);
        self.files.iter().for_each(|files| files.set_running(running));
        self.sockets.iter().for_each(|socket| socket.set_running(running));
    }

    /// Has every device look into its queues, as its thread would.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn serve_all(&self) {
        for queue in 0..4 {
            self.console.serve(queue);
            for block in &self.blocks {
                block.serve(queue);
            }
            for network in &self.networks {
                network.serve(queue);
            }
            self.entropy.serve(queue);
            self.balloon.serve(queue);
            for files in &self.files {
                files.serve(queue);
            }
            for socket in &self.sockets {
                socket.serve(queue);
            }
        }
    }

    /// Puts disks behind all slots, which then share these rates.
    pub(super) fn bind(&self, disks: Vec<Option<Disk>>, rates: DiskRates) -> Result<(), MachineError> {
        if disks.len() != self.blocks.len() {
            let count = u32::try_from(disks.len()).unwrap_or(u32::MAX);
            return Err(MachineError::Size { what: "disks for its slots", count });
        }
        for (slot, disk) in (0..).zip(&disks) {
            self.check(slot, disk.as_ref())?;
        }
        let limits = Limits::new(rates);
        for (block, disk) in self.blocks.iter().zip(disks) {
            block.change(|block| {
                block.bind(disk);
                block.limit(limits.clone());
            });
        }
        Ok(())
    }

    /// Puts a disk behind one slot.
    pub(super) fn bind_slot(&self, slot: u32, disk: Option<Disk>) -> Result<(), MachineError> {
        let block = usize::try_from(slot).ok().and_then(|slot| self.blocks.get(slot));
        let block = block.ok_or(MachineError::Size { what: "disk slots for this one", count: self.spec.disk_slots })?;
        self.check(slot, disk.as_ref())?;
        block.change(|block| block.bind(disk));
        Ok(())
    }

    /// Limits how fast a network slot may be.
    pub(super) fn limit_network(&self, slot: u32, rates: NetworkRates) -> Result<(), MachineError> {
        let network = usize::try_from(slot).ok().and_then(|slot| self.networks.get(slot));
        let count = self.spec.network_slots;
        let network = network.ok_or(MachineError::Size { what: "network slots for this one", count })?;
        network.change(|network| network.limit(rates));
        // What waited for the earlier rates is to wait no longer than for these.
        network.kick_all();
        Ok(())
    }

    fn check(&self, slot: u32, disk: Option<&Disk>) -> Result<(), MachineError> {
        let Some(disk) = disk else { return Ok(()) };
        let unfit = |source| Err(MachineError::Disk { slot: usize::try_from(slot).unwrap_or(usize::MAX), source });
        if disk.bytes() > self.spec.disk_bytes {
            return unfit(DiskError::TooLong);
        }
        if !self.spec.is_writable(slot) && !disk.is_read_only() {
            return unfit(DiskError::Writable);
        }
        Ok(())
    }

    /// One line about each device that somebody waits for.
    pub(super) fn stand(&self) -> impl Iterator<Item = String> {
        let blocks = self.blocks.iter().enumerate().map(|(slot, block)| (format!("disk {slot}"), block.standing()));
        let networks = self.networks.iter().enumerate().map(|(slot, one)| (format!("network {slot}"), one.standing()));
        let others = [
            ("console".into(), self.console.standing()),
            ("entropy".into(), self.entropy.standing()),
            ("balloon".into(), self.balloon.standing()),
        ];
        let files = self.files.iter().map(|files| ("file system".to_owned(), files.standing()));
        let sockets = self.sockets.iter().map(|socket| ("socket".to_owned(), socket.standing()));
        let all = others.into_iter().chain(blocks).chain(networks).chain(files).chain(sockets);
        all.filter_map(|(name, standing)| Some(format!("{name}: {}", standing?)))
    }

    /// Freezes all.
    pub(super) fn save(&self) -> DevicesState {
        DevicesState {
            console: self.console.save(),
            entropy: self.entropy.save(),
            balloon: self.balloon.save(),
            files: self.files.iter().map(|files| files.save()).collect(),
            sockets: self.sockets.iter().map(|socket| socket.save()).collect(),
            blocks: self.blocks.iter().map(|block| block.save()).collect(),
            networks: self.networks.iter().map(|network| network.save()).collect(),
        }
    }

    /// Becomes what was frozen.
    pub(super) fn restore(&self, state: DevicesState) -> Result<(), MachineError> {
        let DevicesState { console, entropy, balloon, files, sockets, blocks, networks } = state;
        let counts = [blocks.len(), networks.len(), files.len(), sockets.len()];
        if counts != [self.blocks.len(), self.networks.len(), self.files.len(), self.sockets.len()] {
            return Err(StateError::OtherMachine("the number of devices").into());
        }
        let unfit = |error: UnfitState| MachineError::State(StateError::Device(error.to_string()));
        self.console.restore(console).map_err(unfit)?;
        self.entropy.restore(entropy).map_err(unfit)?;
        self.balloon.restore(balloon).map_err(unfit)?;
        for (own, state) in self.files.iter().zip(files) {
            own.restore(state).map_err(unfit)?;
        }
        for (own, state) in self.sockets.iter().zip(sockets) {
            own.restore(state).map_err(unfit)?;
        }
        for (block, state) in self.blocks.iter().zip(blocks) {
            block.restore(state).map_err(unfit)?;
        }
        for (network, state) in self.networks.iter().zip(networks) {
            network.restore(state).map_err(unfit)?;
        }
        Ok(())
    }
}

fn device<D: VirtioDevice>(device: D, memory: &Arc<GuestMemory>) -> Result<Arc<Transport<D>>, MachineError> {
    Ok(Arc::new(Transport::new(device, Arc::clone(memory)).map_err(system("make a device"))?))
}

fn connect<D: VirtioDevice>(vm: &VmFd, number: usize, device: &Transport<D>) -> Result<(), MachineError> {
    let count = u32::try_from(number).unwrap_or(u32::MAX);
    let gsi = virtio_gsi(number).ok_or(MachineError::Size { what: "devices", count })?;
    vm.register_irqfd(device.interrupt().wire(), gsi).map_err(kvm("connect a device's interrupt"))?;
    let notify = IoEventAddress::Mmio(virtio_page(number) + QUEUE_NOTIFY);
    for (queue, kick) in (0_u32..).zip(device.kicks()) {
        vm.register_ioevent(kick, &notify, queue).map_err(kvm("connect a queue"))?;
    }
    Ok(())
}
