//! The program: what was said on the command line, MPI, and then one role a rank.

mod preloaded;

use std::io::{self, Write};
use std::process::ExitCode as ProcessCode;

use anyhow::{Context, Result};
use pcopy::cli::{Cli, Config, Generate, man_page};
use pcopy::comm::{self, Comm, CommError, Launcher};
use pcopy::sys::ignore_signals;
use pcopy::types::ExitCode;
use pcopy::{manifest, op, worker};

fn main() -> ProcessCode {
    ignore_signals();
    let launcher = Launcher::from_env();
    let code = match Cli::read() {
        Ok(Cli { generate: Some(what), .. }) => speak_once(&launcher, 0, || generate(what)),
        Ok(cli) => match cli.config() {
            Ok(config) => run(&launcher, config),
            Err(err) => speak_once(&launcher, err.exit_code(), || Ok(err.print()?)),
        },
        Err(err) => speak_once(&launcher, err.exit_code(), || Ok(err.print()?)),
    };
    match code {
        Ok(code) => ProcessCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
        Err(err) => {
            say(&format!("pcopy: {err:#}"));
            ProcessCode::from(u8::try_from(ExitCode::Refused.number()).unwrap_or(u8::MAX))
        }
    }
}

/// The job, as this rank's part of it. Only rank 0 leaves with the job's exit code: OpenMPI ends the other ranks at
/// the first one that is not zero.
fn run(launcher: &Launcher, mut config: Config) -> Result<i32> {
    let mut comm = match Comm::start(launcher) {
        Ok(comm) => comm,
        // every process finds it, one says it
        Err(CommError::Mismatch(_)) if !launcher.is_first() => return Ok(0),
        Err(err) => return Err(err.into()),
    };
    config.policy.umask = nix::sys::stat::umask(nix::sys::stat::Mode::empty()).bits() & 0o777;
    raise_open_files_limit();
    let (rank, host) = (comm.rank(), comm.host().to_string());
    let ended = if rank == 0 {
        op::copy(&mut comm, &config).map_err(anyhow::Error::from)
    } else {
        worker::serve(&mut comm).map(|()| ExitCode::Complete).map_err(anyhow::Error::from)
    };
    match ended {
        Ok(code) => Ok(code.number()),
        Err(err) => {
            // the others may wait for this rank for ever: end them too
            // a panic has said its line
            if !comm::has_panicked() {
                say(&format!("pcopy: rank {rank} ({host}) cannot go on: {err:#}; the copy is NOT complete"));
            }
            comm::abort(ExitCode::Broken.number());
        }
    }
}

/// Each I/O thread keeps directories open: the usual soft limit of 1024 is too near.
fn raise_open_files_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // where it may not be raised the old limit holds, and an entry that meets it fails with EMFILE
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Prints something that is the same on every rank, once. Beside other ranks MPI must have been started and ended
/// before one may leave with an exit code: else the launcher may kill the one that speaks.
fn speak_once(launcher: &Launcher, code: i32, speak: impl FnOnce() -> Result<()>) -> Result<i32> {
    let speak = || match speak().and_then(|()| Ok(io::stdout().flush()?)) {
        // EPIPE on stdout (for example "pcopy --help | head") is not an error
        Err(err) if err.downcast_ref::<io::Error>().is_some_and(|err| err.kind() == io::ErrorKind::BrokenPipe) => {
            Ok(())
        }
        spoken => spoken.context("stdout"),
    };
    if !launcher.started_several() {
        speak()?;
        return Ok(code);
    }
    let speaks = match Comm::start(launcher) {
        Ok(comm) => comm.rank() == 0,
        Err(_) => launcher.is_first(),
    };
    if !speaks {
        return Ok(0);
    }
    speak()?;
    Ok(code)
}

/// A closed stderr must not become a panic.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn generate(what: Generate) -> Result<()> {
    let text = match what {
        Generate::Man => man_page().context("the man page")?,
        Generate::Schema => manifest::SCHEMA.as_bytes().to_vec(),
    };
    Ok(io::stdout().write_all(&text)?)
}
