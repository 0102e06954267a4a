//! Guest interrupts and doorbells by KVM: irqfds for lines and MSIs, ioeventfds for notifications.
//!
//! Nothing is registered before the guest's driver asks for it: each registration waits for all
//! readers of KVM's tables, which would be most of the start-up time.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::irq::{Doorbells, Irq, MsiMessage, MsiRouter};
use devices::thread::execute;
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::arch::irq;
use crate::steward::Steward;

/// Most GSIs that KVM takes (`KVM_MAX_IRQ_ROUTES`).
const MAX_GSI: u32 = 4096;

/// A line of the interrupt controller.
pub struct Line {
    event: EventFd,
    /// Written where a level-triggered line was let go.
    released: Option<EventFd>,
}

impl Line {
    /// Connects a line that is raised as an edge.
    pub fn edge(vm: &VmFd, gsi: u32) -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        vm.register_irqfd(&event, gsi).map_err(os_error)?;
        let released = None;
        Ok(Self { event, released })
    }

    /// Connects a line that stays raised until the guest has served an interrupt of it. Where the guest
    /// kept it masked before, newer kernels let go of it at the unmasking (Linux 6.2, "resampling"): whoever
    /// has a reason for it is to raise it once more, as [`Line::was_released`] says.
    pub fn level(vm: &VmFd, gsi: u32) -> io::Result<Self> {
        let (event, released) = (EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?);
        vm.register_irqfd_with_resample(&event, &released, gsi)
            .map_err(os_error)?;
        let released = Some(released);
        Ok(Self { event, released })
    }

    /// Readable when a level-triggered line was let go.
    pub fn released(&self) -> Option<&EventFd> {
        self.released.as_ref()
    }

    /// Whether it was since the last call.
    pub fn was_released(&self) -> bool {
        let released = self.released.as_ref();
        released.is_some_and(|released| released.read().is_ok())
    }
}

impl Irq for Line {
    fn raise(&self) {
        // Only a counter at its maximum fails, and then an interrupt is on its way anyway.
        let _ = self.event.write(1);
    }
}

/// Routes of the lines, which have the first GSIs.
fn lines() -> impl Iterator<Item = kvm_irq_routing_entry> {
    (0..irq::LINES).map(|pin| {
        let mut entry = kvm_irq_routing_entry {
            gsi: pin,
            type_: KVM_IRQ_ROUTING_IRQCHIP,
            ..Default::default()
        };
        entry.u.irqchip.irqchip = irq::CHIP;
        entry.u.irqchip.pin = pin;
        entry
    })
}

/// The route of a message, without the device id that Arm's interrupt translation service asks for.
fn route(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    // The low half of each split value; the casts cut on purpose.
    entry.u.msi.address_lo = message.address as u32;
    entry.u.msi.address_hi = (message.address >> 32) as u32;
    entry.u.msi.data = message.data;
    entry
}

#[derive(Default)]
struct Routes {
    /// Ranges of GSIs that functions have: the first and their number.
    reserved: BTreeMap<u32, u32>,
    messages: BTreeMap<u32, MsiMessage>,
    connected: BTreeSet<u32>,
}

impl Routes {
    /// Takes the first `count` free GSIs in a row.
    fn reserve(&mut self, count: u32) -> Option<u32> {
        let mut first = irq::LINES;
        for (start, taken) in &self.reserved {
            if start - first >= count {
                break;
            }
            first = start + taken;
        }
        first.checked_add(count).filter(|end| *end <= MAX_GSI)?;
        self.reserved.insert(first, count);
        Some(first)
    }

    /// Gives back what begins at `first`. KVM forgets the routes when the next is made.
    fn release(&mut self, first: u32) {
        if let Some(count) = self.reserved.remove(&first) {
            let gone = first..first + count;
            self.messages.retain(|gsi, _| !gone.contains(gsi));
        }
    }
}

/// MSI routes and ioeventfds of one VM. Each change is made on the steward's thread.
pub struct KvmInterrupts {
    table: Arc<Table>,
    steward: Arc<Steward>,
}

struct Table {
    vm: Arc<VmFd>,
    routes: Mutex<Routes>,
}

impl KvmInterrupts {
    /// No routes but the lines.
    pub fn new(vm: Arc<VmFd>, steward: Arc<Steward>) -> Self {
        let routes = Mutex::default();
        Self {
            table: Arc::new(Table { vm, routes }),
            steward,
        }
    }

    /// Has the steward do something with the table and a copy of `event`.
    fn on_steward(
        &self,
        event: &EventFd,
        action: impl FnOnce(&Table, &EventFd) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let (table, event) = (self.table.clone(), event.try_clone()?);
        execute(&*self.steward, move || action(&table, &event))
            .unwrap_or_else(|| Err(io::ErrorKind::NotConnected.into()))
    }
}

impl Table {
    fn routes(&self) -> MutexGuard<'_, Routes> {
        // Every update below is complete before the next fallible step.
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, routes: &Routes) -> io::Result<()> {
        let entries: Vec<_> = lines()
            .chain(
                routes
                    .messages
                    .iter()
                    .map(|(gsi, message)| route(*gsi, *message)),
            )
            .collect();
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        self.vm.set_gsi_routing(&table).map_err(os_error)
    }

    fn connect(&self, vector: u32, message: MsiMessage, event: &EventFd) -> io::Result<()> {
        let mut routes = self.routes();
        let earlier = routes.messages.insert(vector, message);
        if earlier != Some(message) {
            self.apply(&routes).inspect_err(|_| {
                // KVM keeps the table that it had.
                match earlier {
                    Some(earlier) => routes.messages.insert(vector, earlier),
                    None => routes.messages.remove(&vector),
                };
            })?;
        }
        if routes.connected.insert(vector) {
            self.vm.register_irqfd(event, vector).map_err(|error| {
                routes.connected.remove(&vector);
                os_error(error)
            })?;
        }
        Ok(())
    }

    fn disconnect(&self, vector: u32, event: &EventFd) -> io::Result<()> {
        let mut routes = self.routes();
        if routes.connected.remove(&vector) {
            self.vm.unregister_irqfd(event, vector).map_err(|error| {
                // KVM has it still, and would not take it a second time.
                routes.connected.insert(vector);
                os_error(error)
            })?;
        }
        // The route stays until the vector is connected anew: it is inert without an irqfd.
        Ok(())
    }
}

impl MsiRouter for KvmInterrupts {
    fn connect(&self, vector: u32, message: MsiMessage, event: &EventFd) -> io::Result<()> {
        self.on_steward(event, move |table, event| {
            table.connect(vector, message, event)
        })
    }

    fn disconnect(&self, vector: u32, event: &EventFd) -> io::Result<()> {
        self.on_steward(event, move |table, event| table.disconnect(vector, event))
    }

    fn allocate(&self, count: u32) -> io::Result<u32> {
        let first = self.table.routes().reserve(count);
        first.ok_or_else(|| io::ErrorKind::StorageFull.into())
    }

    fn release(&self, first: u32) {
        self.table.routes().release(first);
    }
}

impl Doorbells for KvmInterrupts {
    fn connect(&self, address: u64, event: &EventFd) -> io::Result<()> {
        self.on_steward(event, move |table, event| {
            table
                .vm
                .register_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)
                .map_err(os_error)
        })
    }

    fn disconnect(&self, address: u64, event: &EventFd) -> io::Result<()> {
        self.on_steward(event, move |table, event| {
            table
                .vm
                .unregister_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)
                .map_err(os_error)
        })
    }
}

fn os_error(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

#[cfg(test)]
mod tests {
    use std::os::fd::{FromRawFd, IntoRawFd};

    use super::*;

    const MESSAGE: MsiMessage = MsiMessage {
        address: 0xfee0_0000,
        data: 0x31,
    };

    /// The routes of a VM without an interrupt controller.
    fn table() -> Option<Table> {
        let kvm = crate::kvm::api::for_test()?;
        Some(Table {
            vm: Arc::new(kvm.create_vm().expect("a VM")),
            routes: Mutex::default(),
        })
    }

    #[test]
    fn vectors_are_used_again() {
        let mut routes = Routes::default();
        let first: Vec<_> = [2, 4, 3].map(|count| routes.reserve(count)).into();
        let base = irq::LINES;
        assert_eq!(first, [Some(base), Some(base + 2), Some(base + 6)]);
        routes.messages.insert(base + 5, MsiMessage::default());
        routes.messages.insert(base + 6, MsiMessage::default());
        routes.release(base + 2);
        let left: Vec<_> = routes.messages.keys().copied().collect();
        assert_eq!(left, [base + 6]);
        assert_eq!(routes.reserve(5), Some(base + 9), "too many for the gap");
        assert_eq!(routes.reserve(1), Some(base + 2));
        assert_eq!(routes.reserve(3), Some(base + 3));
        assert_eq!(routes.reserve(MAX_GSI), None);
        for _ in 0..10_000 {
            let first = routes.reserve(64).expect("some are left");
            routes.release(first);
        }
    }

    /// A route that KVM has refused is asked for again.
    #[test]
    fn a_refused_route_is_not_kept() {
        let Some(table) = table() else { return };
        let event = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        let vector = irq::LINES;
        // There is no interrupt controller yet.
        table.connect(vector, MESSAGE, &event).expect_err("refused");
        assert!(table.routes().messages.is_empty());
        assert!(table.routes().connected.is_empty());
        table.vm.create_irq_chip().expect("a controller");
        table.connect(vector, MESSAGE, &event).expect("connected");
        assert_eq!(table.routes().messages.get(&vector), Some(&MESSAGE));
        assert!(table.routes().connected.contains(&vector));
    }

    /// An event that KVM has not let go is still connected, so that it can be connected anew.
    #[test]
    fn a_vector_that_is_not_let_go_stays() {
        let Some(table) = table() else { return };
        table.vm.create_irq_chip().expect("a controller");
        let event = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        let file = std::fs::File::open("/dev/null").expect("/dev/null");
        // SAFETY: the descriptor is this file's own; what it is not is what the test is about.
        let other = unsafe { EventFd::from_raw_fd(file.into_raw_fd()) };
        let vector = irq::LINES;
        table.connect(vector, MESSAGE, &event).expect("connected");
        table.disconnect(vector, &other).expect_err("no eventfd");
        table.connect(vector, MESSAGE, &event).expect("connected");
        table.disconnect(vector, &event).expect("let go");
        table.connect(vector, MESSAGE, &event).expect("connected");
    }
}
