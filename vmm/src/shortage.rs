//! What a process has run out of, when an error is that and nothing worse.

use std::error::Error;
use std::io;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::control::ControlError;

/// Something of which the host, or a limit on the process, has too little.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Shortage {
    /// Open files.
    Descriptors,
    /// Processes and threads.
    Threads,
    /// Memory, or address space for it.
    Memory,
}

impl Shortage {
    /// The shortage behind `error`, if its causes end in one.
    pub fn behind(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            // A socket says "try again" for other reasons.
            match error.downcast_ref() {
                Some(ControlError::LostFds) => return Some(Self::Descriptors),
                Some(_) => return None,
                None => {}
            }
            if let Some(found) = errno(error).and_then(Self::of) {
                return Some(found);
            }
            next = error.source();
        }
        None
    }

    fn of(errno: Errno) -> Option<Self> {
        match errno {
            Errno::MFILE | Errno::NFILE => Some(Self::Descriptors),
            Errno::AGAIN => Some(Self::Threads),
            Errno::NOMEM => Some(Self::Memory),
            _ => None,
        }
    }

    /// The way out, as a sentence.
    pub fn way_out(self) -> &'static str {
        match self {
            Self::Descriptors => {
                "Raise the limit on open files (ulimit -n; LimitNOFILE= of the container runtime)."
            }
            Self::Threads => {
                "Raise the limit on processes (ulimit -u, or pids.max of the pod's control group)."
            }
            Self::Memory => {
                "Give the guest less memory, or raise the limits on memory (the pod's memory limit, \
                 ulimit -v, vm.overcommit_memory)."
            }
        }
    }
}

fn errno(error: &(dyn Error + 'static)) -> Option<Errno> {
    let io = error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::raw_os_error);
    let kvm = || {
        error
            .downcast_ref::<vmm_sys_util::errno::Error>()
            .map(|error| error.errno())
    };
    let direct = || error.downcast_ref::<Errno>().copied();
    io.or_else(kvm)
        .map(Errno::from_raw_os_error)
        .or_else(direct)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::api::KvmError;
    use crate::memory::MemoryError;

    fn io(errno: Errno) -> io::Error {
        io::Error::from(errno)
    }

    #[test]
    fn shortages_are_seen_through_their_wrappers() {
        let map = |errno| MemoryError::Map {
            bytes: 1,
            source: io(errno),
        };
        assert_eq!(Shortage::behind(&map(Errno::NOMEM)), Some(Shortage::Memory));
        assert_eq!(Shortage::behind(&map(Errno::INVAL)), None);
        let call = KvmError::call("KVM_CREATE_VM")(kvm_ioctls::Error::new(libc::EMFILE));
        assert_eq!(Shortage::behind(&call), Some(Shortage::Descriptors));
        assert_eq!(Shortage::behind(&io(Errno::AGAIN)), Some(Shortage::Threads));
        let socket = ControlError::Socket(io(Errno::AGAIN));
        assert_eq!(Shortage::behind(&socket), None);
        let lost = ControlError::LostFds;
        assert_eq!(Shortage::behind(&lost), Some(Shortage::Descriptors));
    }
}
