//! Which user the vm process runs as.
//!
//! All that it uses is opened before by the launcher and handed over, so it can be any user. A
//! launcher that may change users never lets it be root.

use rustix::process::{getegid, geteuid};
use rustix::thread::CapabilitySet;
use seccomp::jail::User;
use thiserror::Error;

/// KubeVirt's user and group for virtual machines, `qemu`.
const KUBEVIRT: User = User { uid: 107, gid: 107 };

/// The options that choose a user need rights that the launcher does not have.
#[derive(Debug, Error)]
#[error(
    "Options --uid and --gid need a launcher that may change users (root with CAP_SETUID and \
     CAP_SETGID); this one runs as {uid}:{gid} and may not"
)]
pub struct ChooseUserError {
    /// The launcher's effective user.
    pub uid: u32,
    /// The launcher's effective group.
    pub gid: u32,
}

/// The user to change to, or none to stay what the launcher is: the one that was asked for; else
/// who called `sudo`; else KubeVirt's. A launcher that may not change users, as in a container
/// without capabilities, stays the user of its container.
pub fn choose_user(asked: Option<User>) -> Result<Option<User>, ChooseUserError> {
    let may_change = may_change_users();
    match asked {
        Some(user) if may_change => Ok(Some(user)),
        Some(_) => Err(ChooseUserError {
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
        }),
        None if !may_change || !geteuid().is_root() => Ok(None),
        None => Ok(Some(sudo_user().unwrap_or(KUBEVIRT)).filter(is_mapped)),
    }
}

fn may_change_users() -> bool {
    let needed = CapabilitySet::SETUID | CapabilitySet::SETGID;
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
}

/// Who called `sudo`, unless that was root.
fn sudo_user() -> Option<User> {
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    let user = User {
        uid: number("SUDO_UID")?,
        gid: number("SUDO_GID")?,
    };
    (user.uid != 0 && user.gid != 0).then_some(user)
}

/// Whether the launcher's user namespace has the user and the group.
fn is_mapped(user: &User) -> bool {
    has("/proc/self/uid_map", user.uid) && has("/proc/self/gid_map", user.gid)
}

fn has(map: &str, id: u32) -> bool {
    std::fs::read_to_string(map).is_ok_and(|map| covers(&map, id))
}

/// Lines of first ID inside, first ID outside, count (user_namespaces(7)).
fn covers(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(first)), Some(Ok(count))) = (numbers.next(), numbers.nth(1)) else {
            return false;
        };
        (first..first + count).contains(&u64::from(id))
    })
}

#[cfg(test)]
mod tests {
    use devices::testing::missing;
    use rustix::thread::{CapabilitySets, set_capabilities};

    use super::*;

    #[test]
    fn maps_of_user_namespaces() {
        let whole = "         0          0 4294967295\n";
        assert!(covers(whole, 107) && covers(whole, 0));
        let rootless = "0 1000 1\n1 100000 65536\n";
        assert!(covers(rootless, 107) && covers(rootless, 65536) && !covers(rootless, 65537));
        assert!(!covers("0 1000 1\n", 107));
        assert!(!covers("", 0));
    }

    /// Capabilities are a thread's, so this one can lose them.
    #[test]
    fn an_unprivileged_launcher_keeps_its_user() {
        let unprivileged = std::thread::spawn(|| {
            let none = CapabilitySets {
                effective: CapabilitySet::empty(),
                permitted: CapabilitySet::empty(),
                inheritable: CapabilitySet::empty(),
            };
            set_capabilities(None, none).expect("what is held may be given up");
            assert_eq!(choose_user(None).expect("no choice"), None);
            choose_user(Some(KUBEVIRT)).expect_err("refused")
        });
        let error = unprivileged.join().expect("as it should be");
        let own = (geteuid().as_raw(), getegid().as_raw());
        assert_eq!((error.uid, error.gid), own);
    }

    #[test]
    fn root_is_not_kept_where_users_can_be_changed() {
        if !may_change_users() || !geteuid().is_root() || !is_mapped(&KUBEVIRT) {
            return missing("not root of a namespace that has KubeVirt's user");
        }
        let user = choose_user(None).expect("no choice").expect("another user");
        assert_eq!(user, sudo_user().unwrap_or(KUBEVIRT));
        assert!(user.uid != 0 && user.gid != 0);
        let asked = User { uid: 5, gid: 6 };
        assert_eq!(choose_user(Some(asked)).expect("may change"), Some(asked));
    }
}
