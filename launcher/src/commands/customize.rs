//! `podvisor customize`: a script in the guest of a disk image, and the image that it leaves.
//!
//! ```text
//!   disk of files     guest.sh, script, injected files       files
//!   seed (NoCloud)    a script that starts guest.sh          machine
//!   podvisor run      over the image; two ports tell         session
//!     what the script prints and how it ends
//!   new image         all layers in one, renamed into place  image
//! ```
//!
//! The machine is a process of its own, which gives up what it does not need as every `run` does; this one keeps its paths for
//! the new image.

mod error;
mod files;
mod image;
mod machine;
mod session;
mod sink;

use std::io;

use serde_json::{Value, json};

pub use self::error::CustomizeError;
use self::files::Inputs;
use self::image::NewImage;
pub use self::session::told as told_by_guest;
use self::session::{Ended, Session};
use self::sink::Sink;
use super::progress::Progress;
use super::{CommandError, new, output};
use crate::cli::CustomizeArgs;
use crate::exit::Exit;
use crate::logging::{self, LogFormat};
use crate::resources;
use crate::streams::Patient;
use crate::supervise::Signals;

/// Runs the script.
pub(super) fn customize(args: &CustomizeArgs) -> Result<Exit, CommandError> {
    let wait_for_signals = |source| CommandError::System {
        what: "wait for signals",
        source,
    };
    Signals::end_early().map_err(wait_for_signals)?;
    logging::init(args.log_level, LogFormat::Text);
    // They may be pipes that nobody writes to.
    let inputs = Inputs::open(args);
    // From here on there is something to remove.
    let signals = Signals::block().map_err(wait_for_signals)?;
    let mut sink = match args.output {
        LogFormat::Json => Sink::keep(),
        LogFormat::Text => Sink::pass_on(),
    };
    let result = inputs.and_then(|inputs| work(args, inputs, &mut sink, &signals));
    if let Some(said) = sink.kept() {
        let text = output::json(&answer(args, &result, said))?;
        output::write(&mut Patient::new(io::stdout(), &signals), &text)?;
    }
    result
}

/// What `-o json` prints, whatever became of it.
fn answer(args: &CustomizeArgs, result: &Result<Exit, CommandError>, said: &[u8]) -> Value {
    let (exit, error) = match result {
        Ok(exit) => (*exit, None),
        Err(error) => (error.exit(), Some(error)),
    };
    let status = match (exit, error) {
        (Exit::Success, _) => Some(0),
        (_, Some(CommandError::Customize(CustomizeError::Failed(status)))) => Some(*status),
        _ => None,
    };
    json!({
        "exitStatus": exit as u8,
        "status": status,
        "output": String::from_utf8_lossy(said),
        "out": args.out.as_ref().filter(|_| exit == Exit::Success),
        "error": error.map(CommandError::paragraph),
    })
}

fn work(
    args: &CustomizeArgs,
    inputs: Inputs,
    sink: &mut Sink,
    signals: &Signals,
) -> Result<Exit, CommandError> {
    let disk = new::disk(&args.disk)?;
    let progress = Progress::new();
    let new_image = args.out.as_deref();
    let new_image = new_image.map(|out| NewImage::begin(disk.path(), out));
    let new_image = new_image.transpose()?;
    let directory = resources::scratch_directory().and_then(|scratch| {
        let mut directory = tempfile::Builder::new();
        directory.prefix("podvisor-").tempdir_in(scratch)
    });
    let directory = directory.map_err(CustomizeError::Directory)?;
    files::make(
        args,
        &inputs,
        &directory.path().join(machine::FILES),
        signals,
    )?;
    let overlay = new_image.as_ref().map(NewImage::overlay);
    let command = machine::command(args, inputs.user_data, &disk, directory.path(), overlay)?;
    progress.step(format_args!("booting {:?}", disk.path()));
    let session = Session::start(command, directory.path(), args.timeout, signals)?;
    let ended = session.wait(sink)?;
    check(&ended, args.out.is_some())?;
    if ended.exit != Exit::Success {
        // It has said why.
        return Ok(ended.exit);
    }
    if let Some(new_image) = new_image {
        new_image.finish(&progress, signals)?;
    }
    Ok(Exit::Success)
}

/// What the guest said, where its machine ended as it should.
fn check(ended: &Ended, is_kept: bool) -> Result<(), CustomizeError> {
    match ended.status {
        Some(status) if status != 0 => Err(CustomizeError::Failed(status)),
        _ if ended.exit != Exit::Success => Ok(()),
        None => Err(CustomizeError::Silent),
        Some(_) if is_kept && !ended.sealed => Err(CustomizeError::NotSealed),
        Some(_) => Ok(()),
    }
}
