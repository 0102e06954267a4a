//! Saved states that somebody has changed. Whatever they say, a device refuses them or goes on as one
//! that a guest could have brought there: it can be saved and restored again, and after a reset it
//! works for a driver that behaves.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::bus::BusDevice;
use devices::character::CharacterKind;
use devices::legacy::power::{PowerControl, Signals};
use devices::legacy::serial::{ConsoleQueue, SerialConsole};
use devices::legacy::x86_64::cmos::Cmos;
use devices::pci::PciFunction;
use devices::state::Saved;
use devices::virtio::VirtioDevice;
use devices::virtio::balloon::Balloon;
use devices::virtio::console::{ConsoleOptions, ConsoleSpec, PortOptions};
use devices::virtio::net::testing::spec;
use devices::virtio::net::{Backend, Stream};
use devices::virtio::rng::Rng;
use devices::virtio::testing::driven::Driven;
use devices::virtio::testing::{Buffer, FakeIrq, block_spec};
use devices::watchdog::{WatchdogAction, WatchdogFunction};

use crate::input::Input;
use crate::json;
use crate::memory::{self, HEAP};

/// Position of the console's queue for control messages of the driver.
const CONTROL: usize = 3;
/// Position of the balloon's queue for pages that the driver takes back.
const DEFLATE: usize = 1;
/// Bytes of the structures that a driver reads.
const REGISTERS: u64 = 0x40;

/// No two stages of a watchdog take longer.
const LONGEST: Duration = Duration::from_secs(4000);

/// Changes the state of the device that the first byte names.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    match input.below(9) {
        0 => serial(&mut input),
        1 => cmos(&mut input),
        2 => power(&mut input),
        3 => virtio(&mut input, 0, || Box::new(Rng::new("rng"))),
        4 => block(&mut input),
        5 => net(&mut input),
        6 => virtio(&mut input, CONTROL, console),
        // By the other queue the driver would give its own rings away.
        7 => virtio(&mut input, DEFLATE, || {
            Box::new(Balloon::new("balloon").expect("eventfd"))
        }),
        _ => watchdog(&mut input),
    }
}

/// `saved` with changes from the input; `None` if it is no envelope any more.
fn changed(saved: &Saved, input: &mut Input<'_>) -> Option<Saved> {
    let mut value = serde_json::to_value(saved).expect("plain data");
    json::change(&mut value, input);
    serde_json::from_value(value).ok()
}

fn serial(input: &mut Input<'_>) {
    let queue = Arc::new(ConsoleQueue::new().expect("an eventfd"));
    let port = || SerialConsole::new(&queue, Arc::new(FakeIrq::default()));
    let first = port();
    first.write(1, &[3]);
    first.input(b"input");
    let saved = first.save().expect("plain data");
    let Some(saved) = changed(&saved, input) else {
        return;
    };
    let second = port();
    if second.restore(&saved).is_ok() {
        let again = second.save().expect("plain data");
        port().restore(&again).expect("its own state");
        touch(&second, 8);
        second.input(&[b'x'; 100]);
        assert!(second.input_room() <= 64);
    }
}

fn cmos(input: &mut Input<'_>) {
    let first = Cmos::default();
    first.write(0, &[0x40]);
    let saved = first.save().expect("plain data");
    let Some(saved) = changed(&saved, input) else {
        return;
    };
    let second = Cmos::default();
    if second.restore(&saved).is_ok() {
        let again = second.save().expect("plain data");
        Cmos::default().restore(&again).expect("its own state");
        second.write(1, &[1]);
        touch(&second, 2);
    }
}

fn power(input: &mut Input<'_>) {
    let signals = Arc::new(Signals::new().expect("an eventfd"));
    let block = || PowerControl::new(signals.clone(), Arc::new(FakeIrq::default()));
    let first = block();
    first.press_power_button();
    let saved = first.save().expect("plain data");
    let Some(saved) = changed(&saved, input) else {
        return;
    };
    let second = block();
    if second.restore(&saved).is_ok() {
        let again = second.save().expect("plain data");
        block().restore(&again).expect("its own state");
        touch(&second, 4);
    }
    assert_eq!(signals.take(), 0, "a state asks for nothing");
}

fn watchdog(input: &mut Input<'_>) {
    const LOCK: u16 = 0x68;
    const ENABLED: u8 = 1 << 1;
    let signals = Arc::new(Signals::new().expect("an eventfd"));
    let new = || WatchdogFunction::new(WatchdogAction::Reset, signals.clone(), Arc::default());
    let mut first = new();
    first.config_write(LOCK, &[ENABLED]);
    first.pause();
    let saved = first.save().expect("paused");
    let Some(saved) = changed(&saved, input) else {
        return;
    };
    let mut second = new();
    if second.restore(&saved).is_ok() {
        let again = second.save().expect("it is paused");
        new().restore(&again).expect("its own state");
        second.resume();
        second.config_write(LOCK, &[ENABLED]);
        let end = second.watchdog().next();
        assert!(end.is_none_or(|end| end <= Instant::now() + LONGEST));
    }
}

/// Two ports, of which nobody has the other side.
fn console() -> Box<dyn VirtioDevice> {
    let options = ConsoleOptions {
        ports: vec![PortOptions {
            id: 1,
            console: false,
            name: Some("channel".to_owned()),
            backend: CharacterKind::File,
        }],
    };
    let spec = ConsoleSpec::new("ports".to_owned(), options, vec![memory::file(0).into()]);
    Box::new(spec.expect("a good spec").build())
}

fn touch(device: &dyn BusDevice, len: u64) {
    for offset in 0..len {
        device.read(offset, &mut [0]);
    }
}

fn block(input: &mut Input<'_>) {
    let image = memory::file(64 << 10);
    virtio(input, 0, move || {
        let image = image.try_clone().expect("a descriptor");
        Box::new(block_spec(image, 1).build().expect("a good disk"))
    });
}

fn net(input: &mut Input<'_>) {
    let (ours, _theirs) = UnixStream::pair().expect("sockets");
    ours.set_nonblocking(true).expect("a socket's flags");
    let socket = File::from(OwnedFd::from(ours));
    let stream = Arc::new(Stream::new(socket));
    virtio(input, 1, move || {
        let backend = Backend::Stream(Arc::clone(&stream));
        Box::new(spec(backend).build().expect("a good NIC"))
    });
}

/// `queue` gives back whatever a driver puts there.
fn virtio(input: &mut Input<'_>, queue: usize, make: impl Fn() -> Box<dyn VirtioDevice> + 'static) {
    let mut driven = Driven::over(memory::of_this_thread(), make, u64::MAX);
    for index in 0..driven.queues.len() {
        driven.offer(index, &[Buffer::writable(HEAP, 64)]);
    }
    driven.function.pause();
    let saved = driven.function.save().expect("paused");
    driven.function.shutdown();
    memory::put(&driven.memory, input);
    let Some(saved) = changed(&saved, input) else {
        return;
    };
    if driven.restore(&saved).is_err() {
        return;
    }
    for offset in (0..REGISTERS).step_by(4).chain(0x2000..0x2010) {
        driven.function.bar_read(0, offset, &mut [0; 4]);
    }
    for queue in 0..driven.queues.len() as u64 {
        driven.write(0x3000 + 4 * queue, &[0, 0]);
    }
    driven.replace();
    driven.start();
    let buffers = [
        Buffer::readable(HEAP, 16),
        Buffer::writable(HEAP + 0x100, 512),
        Buffer::writable(HEAP + 0x400, 1),
    ];
    driven.serve(queue, &buffers);
    driven.function.shutdown();
}
