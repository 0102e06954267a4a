//! How far a guest has come, by what it says on its console: Linux, systemd and cloud-init in their own words. Who says
//! them else is believed, too: they go to a drawing and nowhere else.

use crate::texts::Texts;
use crate::trace;

/// Steps, and the texts by which they are known; a kernel that was told to be quiet says less.
const STAGES: [(&str, &str); 10] = [
    ("kernel", "Linux version "),
    ("init", " as init process"),
    // systemd names the system that it starts, and the target of a system without a screen.
    ("system", "Welcome to "),
    ("cloud-init: local", "running 'init-local' at "),
    ("cloud-init: network", "running 'init' at "),
    ("cloud-init: config", "running 'modules:config' at "),
    ("cloud-init: final", "running 'modules:final' at "),
    // Its last word, after a version and a time that differ: "Cloud-init v. … finished at …. Datasource …".
    ("cloud-init: done", ". Datasource DataSource"),
    ("user space ready", "Multi-User System"),
    ("login prompt", "login: "),
];

/// The stages that are still to come.
#[derive(Debug)]
pub(super) struct Stages(Texts<'static>);

impl Stages {
    pub(super) fn new() -> Self {
        Self(Texts::new(STAGES.map(|(_, text)| text)))
    }

    /// Marks those that come with this output; whether there are any.
    pub(super) fn see(&mut self, output: &[u8]) -> bool {
        let mut any = false;
        self.0.see(output, |index| {
            if let Some((step, _)) = STAGES.get(index) {
                trace::mark_guest(step);
                any = true;
            }
        });
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a Debian 12 of a cloud image says.
    const CONSOLE: &str = "\
[    0.000000] Linux version 6.1.0-18-cloud-amd64 (debian-kernel@lists.debian.org) (gcc-12)\r\n\
[    0.512345] Run /init as init process\r\n\
Loading, please wait...\r\n\
\r\nWelcome to \x1b[1mDebian GNU/Linux 12 (bookworm)\x1b[0m!\r\n\
[    4.1] cloud-init[321]: Cloud-init v. 22.4.2 running 'init-local' at Fri, 27 Nov 2026 12:00:00 +0000. Up 4.10 seconds.\r\n\
[    5.1] cloud-init[341]: Cloud-init v. 22.4.2 running 'init' at Fri, 27 Nov 2026 12:00:01 +0000. Up 5.10 seconds.\r\n\
[    6.1] cloud-init[399]: Cloud-init v. 22.4.2 running 'modules:config' at Fri, 27 Nov 2026 12:00:02 +0000. Up 6.10 seconds.\r\n\
[\x1b[0;32m  OK  \x1b[0m] Reached target \x1b[0;1;39mmulti-user.target\x1b[0m - Multi-User System.\r\n\
\r\nDebian GNU/Linux 12 guest ttyS0\r\n\r\nguest login: \
[    8.1] cloud-init[410]: Cloud-init v. 22.4.2 running 'modules:final' at Fri, 27 Nov 2026 12:00:04 +0000. Up 8.10 seconds.\r\n\
[    8.2] cloud-init[410]: Cloud-init v. 22.4.2 finished at Fri, 27 Nov 2026 12:00:04 +0000. Datasource DataSourceNoCloud [seed=/dev/vdb][dsmode=net].  Up 8.20 seconds\r\n";

    #[test]
    fn a_debian_is_followed_to_its_end() {
        let mut stages = Stages::new();
        let found: Vec<_> = (CONSOLE.as_bytes().chunks(7))
            .filter(|chunk| stages.see(chunk))
            .collect();
        assert_eq!(found.len(), 10);
        // Others of these tests have consoles, too, which say nothing of the kind.
        let steps: Vec<_> = (trace::guest_marks().into_iter())
            .map(|mark| mark.step)
            .collect();
        let expected = [
            "kernel",
            "init",
            "system",
            "cloud-init: local",
            "cloud-init: network",
            "cloud-init: config",
            "user space ready",
            "login prompt",
            "cloud-init: final",
            "cloud-init: done",
        ];
        assert_eq!(steps, expected);
        assert!(!stages.see(CONSOLE.as_bytes()), "each comes once");
    }
}
