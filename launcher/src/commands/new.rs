//! `podvisor new`, and `run DISK`: a machine of a disk image.

use std::fs;
use std::path::Path;

use super::input::is_manifest;
use super::{CommandError, output};
use crate::cli::{DiskArgs, MachineArgs, NewArgs};
use crate::exit::Exit;
use crate::home::{DiskImage, Extras, default_interface, user_data};

/// Prints the VMI, and how it is run.
pub(super) fn new(args: &NewArgs) -> Result<Exit, CommandError> {
    let image = image(&args.disk)?.ok_or_else(|| CommandError::NoDisk(args.disk.clone()))?;
    let vmi = image.vmi(&extras(&args.extras)?);
    let (name, place) = image.volume();
    output::print(&format!(
        "# podvisor run FILE --volume {name}={}\n{vmi}",
        place.display()
    ))?;
    Ok(Exit::Success)
}

/// The VMI of the disk that the arguments name, and the arguments of its run; none if they name no disk.
pub(super) fn of_disk(args: &MachineArgs) -> Result<Option<(String, MachineArgs)>, CommandError> {
    // A manifest is read once.
    let image = match args.vmi.as_ref().filter(|path| !is_manifest(path)) {
        Some(path) => image(path)?,
        None => None,
    };
    let Some(image) = image else {
        return match args.extras == DiskArgs::default() {
            true => Ok(None),
            false => Err(CommandError::OnlyForDisks),
        };
    };
    let mut args = args.clone();
    args.volumes.insert(0, image.volume());
    let exists = |interface: &str| Path::new("/sys/class/net").join(interface).exists();
    if !exists(&args.pod_interface)
        && let Some(interface) = default_interface()
    {
        args.pod_interface = interface;
    }
    let vmi = image.vmi(&extras(&args.extras)?);
    Ok(Some((vmi, args)))
}

fn image(path: &Path) -> Result<Option<DiskImage>, CommandError> {
    DiskImage::at(path).map_err(cannot_read(path))
}

fn extras(args: &DiskArgs) -> Result<Extras, CommandError> {
    let read = |path: &Path| fs::read_to_string(path).map_err(cannot_read(path));
    let user_data = match &args.cloud_init {
        Some(path) => read(path)?,
        None => {
            let keys = args.ssh_key.iter().map(|path| read(path));
            let keys = keys.collect::<Result<Vec<_>, _>>()?;
            let keys = keys.iter().flat_map(|file| file.lines());
            let is_key = |line: &&str| !line.is_empty() && !line.starts_with('#');
            let keys = keys.map(str::trim).filter(is_key);
            let keys: Vec<_> = keys.map(str::to_owned).collect();
            user_data(args.user.as_deref(), &keys)
        }
    };
    Ok(Extras {
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
