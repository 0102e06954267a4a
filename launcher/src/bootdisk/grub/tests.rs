use std::collections::BTreeMap;
use std::io::{self, Read};

use super::*;
use crate::bootdisk::entries::Volume;
use crate::bootdisk::filesystem::Content;
use crate::bootdisk::partitions::{Partition, Scheme};

const UUID: &str = "0a1b2c3d-0000-4000-8000-000000000001";

/// Files by path.
struct Fake {
    uuid: &'static str,
    files: BTreeMap<&'static str, String>,
}

impl FileSystem for Fake {
    fn kind(&self) -> &'static str {
        "ext4"
    }
    fn uuid(&self) -> String {
        self.uuid.to_owned()
    }
    fn label(&self) -> String {
        "boot".to_owned()
    }
    fn open(&self, path: &str) -> io::Result<(Box<dyn Read + '_>, u64)> {
        let text = self.files.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok((Box::new(text.as_bytes()), text.len() as u64))
    }
    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let prefix = format!("{}/", path.trim_end_matches('/'));
        let below = self
            .files
            .keys()
            .filter_map(|file| file.strip_prefix(&prefix));
        let names: Vec<_> = below
            .filter_map(|rest| rest.split('/').next())
            .map(str::to_owned)
            .collect();
        match names.is_empty() {
            true => Err(io::ErrorKind::NotFound.into()),
            false => Ok(names),
        }
    }
}

type Files<'a> = Vec<(&'static str, &'a str)>;

fn volumes(all: Vec<(u32, &'static str, Files<'_>)>) -> Volumes {
    let volume = |(number, uuid, files): (u32, _, Files<'_>)| Volume {
        partition: Partition {
            number,
            start: 0,
            len: 4096,
            kind: Kind::Other,
            name: String::new(),
        },
        content: Content::Files(Box::new(Fake {
            uuid,
            files: files
                .into_iter()
                .map(|(path, text)| (path, text.to_owned()))
                .collect(),
        })),
    };
    Volumes {
        scheme: Scheme::Gpt(512),
        all: all.into_iter().map(volume).collect(),
    }
}

/// The default entry of a configuration in /boot of partition 1.
fn default(script: &str, more: Files<'_>) -> Option<Entry> {
    let mut files = vec![("/boot/grub/grub.cfg", script)];
    files.extend(more);
    let volumes = volumes(vec![(1, UUID, files)]);
    let found = entries(&volumes);
    found.all.get(found.default).cloned()
}

/// As Debian's grub-mkconfig writes it.
const DEBIAN: &str = r#"
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="0"
fi
if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
export menuentry_id_option
function savedefault {
  if [ -z "${boot_once}" ]; then
    saved_entry="${chosen}"
    save_env saved_entry
  fi
}
function load_video {
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  else
    insmod efi_gop; insmod efi_uga
  fi
}
if [ x$feature_default_font_path = xy ] ; then
   font=unicode
else
search --no-floppy --fs-uuid --set=root nothing
    font="/usr/share/grub/unicode.pf2"
fi
if loadfont $font ; then
  set gfxmode=auto
  load_video
fi
set timeout=5
### BEGIN /etc/grub.d/10_linux ###
menuentry 'Debian GNU/Linux' --class debian --class gnu-linux $menuentry_id_option 'gnulinux-simple-U' {
	load_video
	insmod gzio
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	set root='hd7,gpt9'
	search --no-floppy --fs-uuid --set=root 0a1b2c3d-0000-4000-8000-000000000001
	echo	'Loading Linux 6.1.0-37-cloud-amd64 ...'
	linux	/boot/vmlinuz-6.1.0-37 root=PARTUUID=abc ro  console=tty0 "foo=a b"
	echo	'Loading initial ramdisk ...'
	initrd	/boot/initrd.img-6.1.0-37
}
submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced-U' {
	menuentry 'Debian, with Linux 6.1.0-37' --class debian $menuentry_id_option 'gnulinux-6.1.0-37-advanced-U' {
		linux /boot/vmlinuz-6.1.0-37 ro
		initrd /boot/early.img /boot/initrd.img-6.1.0-37
	}
	menuentry 'Debian, with Linux 6.1.0-9' --class debian $menuentry_id_option 'gnulinux-6.1.0-9-advanced-U' {
		linux /boot/vmlinuz-6.1.0-9 ro
		initrd /boot/initrd.img-6.1.0-9
	}
}
menuentry 'UEFI Firmware Settings' $menuentry_id_option 'uefi-firmware' {
	fwsetup
}
if [ -f  ${config_directory}/custom.cfg ]; then
  source ${config_directory}/custom.cfg
elif [ -z "${config_directory}" -a -f  $prefix/custom.cfg ]; then
  source $prefix/custom.cfg
fi
"#;

#[test]
fn debians_configuration() {
    let entry = default(DEBIAN, Vec::new()).expect("an entry");
    assert_eq!(entry.id, "gnulinux-simple-U");
    assert_eq!(
        entry.kernel.to_string(),
        r#""/boot/vmlinuz-6.1.0-37" of partition 1"#
    );
    assert_eq!(entry.initrds[0].path, "/boot/initrd.img-6.1.0-37");
    assert_eq!(
        entry.options,
        r#"root=PARTUUID=abc ro console=tty0 "foo=a b""#
    );
}

#[test]
fn the_default_may_be_anywhere() {
    let booted = |environment: &str| {
        let environment = format!("# GRUB Environment Block\n{environment}\n#####");
        let entry = default(DEBIAN, vec![("/boot/grub/grubenv", &environment)]);
        entry.expect("an entry").kernel.path
    };
    for (next, kernel) in [
        ("", "/boot/vmlinuz-6.1.0-37"),
        ("1>1", "/boot/vmlinuz-6.1.0-9"),
        (
            "gnulinux-advanced-U>gnulinux-6.1.0-9-advanced-U",
            "/boot/vmlinuz-6.1.0-9",
        ),
        (
            "Advanced options for Debian GNU/Linux>Debian, with Linux 6.1.0-9",
            "/boot/vmlinuz-6.1.0-9",
        ),
        ("1", "/boot/vmlinuz-6.1.0-37"),
        // Not there, or without a kernel: the first.
        ("gone", "/boot/vmlinuz-6.1.0-37"),
        ("7", "/boot/vmlinuz-6.1.0-37"),
        ("uefi-firmware", "/boot/vmlinuz-6.1.0-37"),
    ] {
        assert_eq!(booted(&format!("next_entry={next}")), kernel, "{next}");
    }
    let custom = "menuentry mine { linux16 /mine }\nset default=mine";
    let entry = default(DEBIAN, vec![("/boot/grub/custom.cfg", custom)]);
    assert_eq!(entry.expect("an entry").kernel.path, "/mine");
}

/// Fedora and CentOS: entries are files of their own, in a /boot of its own.
#[test]
fn fedoras_configuration() {
    let script = r#"
set pager=1
if [ -f ${config_directory}/grubenv ]; then
  load_env -f ${config_directory}/grubenv
elif [ -s $prefix/grubenv ]; then
  load_env
fi
if [ "${next_entry}" ] ; then set default="${next_entry}"; else set default="${saved_entry}"; fi
if [ x$feature_platform_search_hint = xy ]; then
  search --no-floppy --fs-uuid --set=root --hint-bios=hd0,gpt2 --hint='hd0,gpt2'  0A1B2C3D-0000-4000-8000-000000000001
fi
if [ -z "${kernelopts}" ]; then
  set kernelopts="root=UUID=1 ro crashkernel=1G"
fi
insmod blscfg
blscfg
if [ x"${saved_entry}" = x ]; then set default=0; fi
"#;
    let old = "title Fedora (6.8.5)\nversion 6.8.5\nlinux /vmlinuz-6.8.5\ninitrd /i-6.8.5.img $tuned_initrd\noptions $kernelopts quiet ${tuned_params}\n";
    let new =
        "title Fedora (6.10.2)\nlinux /vmlinuz-6.10.2\ninitrd /i-6.10.2.img\noptions $kernelopts\n";
    let rescue = "title Rescue\nlinux /vmlinuz-0-rescue\n";
    let boot = |environment: &'static str| {
        let files = vec![
            ("/grub2/grub.cfg", script),
            ("/grub2/grubenv", environment),
            ("/loader/entries/abc-6.8.5.conf", old),
            ("/loader/entries/abc-6.10.2.conf", new),
            ("/loader/entries/abc-0-rescue.conf", rescue),
        ];
        let volumes = volumes(vec![(1, "other", Vec::new()), (2, UUID, files)]);
        let found = entries(&volumes);
        assert_eq!(found.all.len(), 3);
        found.all[found.default].clone()
    };
    let entry = boot("x=y");
    assert_eq!(
        (entry.id.as_str(), entry.kernel.partition),
        ("abc-6.10.2", 2)
    );
    assert_eq!(entry.options, "root=UUID=1 ro crashkernel=1G");
    let entry = boot("saved_entry=abc-6.8.5\n");
    assert_eq!(entry.options, "root=UUID=1 ro crashkernel=1G quiet ");
    assert_eq!(entry.initrds.len(), 1);
    assert_eq!(boot("saved_entry=2\n").title, "Rescue");
}

#[test]
fn the_language() {
    let script = r#"
# Quotes, continued \
lines and "words";
set a="x y"; set b='$a'
set words="one two"
for w in $words "$a" three; do set all="$all<$w>"; done
function joined { set got="$1|$2|$#|$@"; return 1; set got=no; }
joined 'p q' r
if ! joined "$a" r; then set negated=y; fi
until [ "$n" = 11 ]; do set n="1$n"; done
if [ ( "$n" -eq 11 ) -a ! -e /nothing -a -s /boot/grub/grub.cfg -o -d /nowhere ]; then
  if test -n "$a" && true; then set never=1; fi
  set tested=y
fi
if false; then set no=1; elif [ -z "$no" ]; then set elif=y; else set no=2; fi
menuentry "a>b" { linux (hd0,gpt1)//k/../$b "$b" $a "${all}" $got $negated $tested $elif e\ f
}
"#;
    let entry = default(script, Vec::new()).expect("an entry");
    assert_eq!(entry.kernel.path, "/k/../$a");
    let expected = "$a x y \"<one><two><x y><three>\" x y|r|2|x y r y y y \"e f\"";
    assert_eq!(entry.options, expected);
}

/// `return` ends its function, menu or entry, out of whatever it stands in, and nothing else.
#[test]
fn what_returns_is_left() {
    let script = r#"
function from_for { for w in 1 2 3; do set for="$for$w"; return 1; set for=no; done; set for=no; }
function from_while { while true; do set while="$while."; return; done; set while=no; }
function from_condition { if return; then set condition=no; fi; set condition=no; }
function from_file { source $prefix/more.cfg; set file=no; }
from_for; if [ $? = 1 ]; then set status=y; fi
from_while; from_condition; from_file
submenu outer {
  submenu inner {
    menuentry a { for w in 1 2; do linux /k$w $for $while $status $condition $file; return; done; linux /no }
    return
    menuentry no { linux /no }
  }
  for w in 1 2; do return; done
  menuentry no { linux /no }
}
menuentry b { linux /b }
"#;
    let files = vec![
        ("/boot/grub/grub.cfg", script),
        ("/boot/grub/more.cfg", "set file=y; return; set file=no"),
    ];
    let found = entries(&volumes(vec![(1, UUID, files)]));
    let all: Vec<_> = found
        .all
        .iter()
        .map(|entry| (entry.kernel.path.as_str(), entry.options.as_str()))
        .collect();
    assert_eq!(all, [("/k1", "1 . y y"), ("/b", "")]);
}

/// What is more than any configuration is told.
#[test]
fn a_script_that_is_too_much_is_told() {
    let variables: String = (0..1200).map(|n| format!("set v{n}=x\n")).collect();
    let functions: String = (0..1200)
        .map(|n| format!("function f{n} {{ true; }}\n"))
        .collect();
    let long = format!("set a={}\n", "x".repeat(5000));
    let word = format!("{long}set b=\"{}\"", "$a".repeat(2));
    let words = format!("{long}for b in {}; do true; done", "$a ".repeat(2));
    let empty = format!("true {}", "\"\" ".repeat(10_000));
    for (script, why) in [
        ("while true; do true; done", "more than 100000 commands"),
        ("function f { f; }; f", "more than 24 blocks"),
        (&variables, "more than 1024 variables"),
        (&functions, "more than 1024 functions"),
        (&word, "a command has more than 8192 bytes"),
        (&words, "a command has more than 8192 bytes"),
        (&empty, "a command has more than 8192 bytes"),
    ] {
        let script = format!("{script}\nmenuentry 'b' {{ linux /k }}");
        let files = vec![("/boot/grub/grub.cfg", script.as_str())];
        let found = entries(&volumes(vec![(1, UUID, files)]));
        assert!(found.all.is_empty(), "{why}");
        let unread = found.unread.unwrap_or_default();
        assert!(
            unread.contains("/boot/grub/grub.cfg") && unread.contains(why),
            "{why}: {unread}"
        );
    }
    // A variable that is there may change however many there are.
    let many: String = (0..900).map(|n| format!("set v{n}=x\n")).collect();
    let entry = default(
        &format!("{many}{many}menuentry a {{ linux /k $v899 }}"),
        Vec::new(),
    );
    assert_eq!(entry.expect("an entry").options, "x");
}

/// What a tenant may write: ends, and soon.
#[test]
fn endless_scripts_end() {
    let deep = format!(
        "{}set a=1{}",
        "if true; then ".repeat(5000),
        "; fi".repeat(5000)
    );
    let menus = format!("{}{}", "submenu a { ".repeat(5000), "}".repeat(5000));
    let brackets = format!("if [ {} a ]; then true; fi", "( ! ".repeat(5000));
    let turned = format!("{}true", "! ".repeat(300_000));
    for script in [
        "while true; do set a=1; done",
        "function f { f; f; }; f",
        "set a=xxxxxxxx; while true; do set a=$a$a; done",
        "source /boot/grub/grub.cfg; source /boot/grub/grub.cfg",
        "for a in 1 2 3 4 5 6 7 8; do source $prefix/grub.cfg; done",
        "while true; do menuentry a { linux /k }; done",
        "if if if if then then fi",
        "menuentry 'a' {",
        "submenu a { submenu b { source /boot/grub/grub.cfg } }",
        "${",
        "\"$",
        "[ ( ",
        "until; do",
        "while; do; done",
        "while true; do for a in 1 2 3 4; do; done; done",
        "{ } } {",
        &deep,
        &menus,
        &brackets,
        &turned,
    ] {
        let script = format!("{script}\nmenuentry 'b' {{ linux /k }}");
        // That it returns is what counts.
        default(&script, Vec::new());
    }
}
