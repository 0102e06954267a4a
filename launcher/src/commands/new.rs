//! `podvisor new`, and `run DISK`: a machine of a disk image.

use std::fs;
use std::path::Path;

use super::input::is_manifest;
use super::{CommandError, output};
use crate::cli::{DEFAULT_INTERFACE, DiskArgs, MachineArgs, NewArgs};
use crate::exit::Exit;
use crate::home::{DiskImage, Extras, default_interface, user_data};
use crate::kept;
use crate::plan::PlanOptions;
use crate::report::Plain;

/// Prints the VMI, and how it is run.
pub(super) fn new(args: &NewArgs) -> Result<Exit, CommandError> {
    let image = disk(&args.disk)?;
    let vmi = image.vmi(&extras(
        &args.extras,
        args.name.clone(),
        kept::public_key_if_possible,
    )?);
    let (name, place) = image.volume();
    let place = place.to_string_lossy();
    let place = Plain(&place);
    let ports = "passt lets in all ports unless `ports` or --publish lists some";
    output::print(&format!(
        "# podvisor run FILE --volume {name}={place}\n# {ports}\n{vmi}"
    ))?;
    Ok(Exit::Success)
}

/// The VMI of the disk that the arguments name, and the options of its plan; none if they name no disk.
pub(super) fn of_disk(
    args: &MachineArgs,
    own_key: fn() -> Option<String>,
) -> Result<Option<(String, PlanOptions)>, CommandError> {
    // A manifest is read once.
    let image = match args.vmi.as_ref().filter(|path| !is_manifest(path)) {
        Some(path) => image(path)?,
        None => None,
    };
    let Some(image) = image else {
        return match args.extras == DiskArgs::default() && args.size.is_none() {
            true => Ok(None),
            false => Err(CommandError::OnlyForDisks),
        };
    };
    if !args.beside.is_empty() {
        return Err(CommandError::OnlyForVmis);
    }
    let mut options = args.plan_options();
    options.volumes.insert(0, image.volume());
    // The computer is no pod of its own: what is not asked for is not let in.
    options.publish.get_or_insert_default();
    if args.pod_interface.is_none() {
        options.pod_interface = interface();
    }
    if let Some(bytes) = args.size {
        options.sizes.push((image.volume().0, bytes));
    }
    let vmi = image.vmi(&extras(&args.extras, args.name.clone(), own_key)?);
    Ok(Some((vmi, options)))
}

/// The interface of a pod, or, where there is none of that name, the one that this host reaches the world by.
pub(super) fn interface() -> String {
    let exists = Path::new("/sys/class/net").join(DEFAULT_INTERFACE).exists();
    let other = (!exists).then(default_interface).flatten();
    other.unwrap_or_else(|| DEFAULT_INTERFACE.to_owned())
}

/// The disk that the path has to be.
pub(super) fn disk(path: &Path) -> Result<DiskImage, CommandError> {
    fs::metadata(path).map_err(cannot_read(path))?;
    image(path)?.ok_or_else(|| CommandError::NoDisk(path.to_owned()))
}

fn image(path: &Path) -> Result<Option<DiskImage>, CommandError> {
    DiskImage::at(path).map_err(cannot_read(path))
}

fn extras(
    args: &DiskArgs,
    name: Option<String>,
    own_key: fn() -> Option<String>,
) -> Result<Extras, CommandError> {
    let read = |path: &Path| fs::read_to_string(path).map_err(cannot_read(path));
    let user_data = match &args.cloud_init {
        Some(path) => read(path)?,
        None => {
            let keys = args.ssh_key.iter().map(|path| read(path));
            let keys = keys.collect::<Result<Vec<_>, _>>()?;
            let keys = keys.iter().flat_map(|file| file.lines());
            let is_key = |line: &&str| !line.is_empty() && !line.starts_with('#');
            let keys = keys.map(str::trim).filter(is_key);
            let keys: Vec<_> = keys.map(str::to_owned).chain(own_key()).collect();
            user_data(args.user.as_deref(), &keys)
        }
    };
    Ok(Extras {
        name,
        cpus: args.cpus.unwrap_or(2),
        memory: args.memory.clone().unwrap_or_else(|| "2Gi".to_owned()),
        persistent: args.persistent,
        network: !args.no_network,
        user_data,
    })
}

fn cannot_read(path: &Path) -> impl Fn(std::io::Error) -> CommandError {
    move |source| CommandError::Input {
        file: format!("{path:?}"),
        source,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, CliCommand};

    fn options(words: &[&str]) -> Result<Option<(String, PlanOptions)>, CommandError> {
        let cli = Cli::try_parse_from([&["podvisor", "plan"], words].concat()).expect("usage");
        match cli.command {
            CliCommand::Plan(args) => of_disk(&args, || None),
            _ => panic!("plan"),
        }
    }

    #[test]
    fn what_is_not_asked_for_is_not_let_in() {
        let directory = tempfile::tempdir().expect("a directory");
        let disk = directory.path().join("disk.img");
        fs::write(&disk, [0; 512]).expect("written");
        let disk = disk.to_str().expect("UTF-8");
        let publish = |words: &[&str]| {
            let (_, options) = options(words).expect("readable").expect("a disk");
            options.publish.map(|ports| ports.len())
        };
        assert_eq!(publish(&[disk]), Some(0));
        assert_eq!(publish(&[disk, "--publish=2222:22"]), Some(1));
        let (vmi, _) = options(&[disk, "--name=x"])
            .expect("readable")
            .expect("a disk");
        assert!(vmi.contains("name: \"x\"\n"), "{vmi}");
        options(&["vmi.yaml", "--cpus=2"]).expect_err("a VMI says that");
        options(&["vmi.yaml", "--size=2Gi"]).expect_err("it is an image's");
        assert!(options(&["vmi.yaml"]).expect("no disk").is_none());
    }
}
