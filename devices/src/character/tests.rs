use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};

use super::*;

fn socket() -> (tempfile::TempDir, Character, std::path::PathBuf) {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).expect("socket");
    let character = Character::new(CharacterKind::Socket, listener.into(), None);
    (dir, character.expect("descriptors"), path)
}

#[test]
fn one_client_after_the_other_reads_and_writes() {
    let (_dir, mut character, path) = socket();
    let mut buffer = [0; 16];
    assert!(!character.look());
    assert_eq!(character.read(&mut buffer), Read::Nothing);
    assert_eq!(character.write(b"lost"), Written::Bytes(4));
    for _ in 0..2 {
        let mut client = UnixStream::connect(&path).expect("client");
        assert!(character.look());
        assert_eq!(character.read(&mut buffer), Read::Nothing);
        client.write_all(b"ping").expect("written");
        assert_eq!(character.read(&mut buffer), Read::Bytes(4));
        assert_eq!(character.write(b"pong"), Written::Bytes(4));
        client.read_exact(&mut buffer[..4]).expect("read");
        assert_eq!(&buffer[..4], b"pong");
        drop(client);
        assert_eq!(character.read(&mut buffer), Read::Nothing);
        assert!(!character.look());
    }
}

#[test]
fn a_client_that_does_not_read_is_full_and_loses_nothing() {
    let (_dir, mut character, path) = socket();
    let mut client = UnixStream::connect(&path).expect("client");
    assert!(character.look());
    let mut sent = 0;
    while let Written::Bytes(count) = character.write(&[7; 4096]) {
        sent += count;
        assert!(sent < 64 << 20, "a socket has an end");
    }
    drop(character);
    let mut all = Vec::new();
    client.read_to_end(&mut all).expect("read");
    assert_eq!(all.len(), sent);
}

#[test]
fn files_are_limited_and_the_log_has_a_copy() {
    let file = tempfile::tempfile().expect("file");
    file.set_len(FILE_LIMIT - 3).expect("sparse");
    let log = tempfile::NamedTempFile::new().expect("file");
    let copy = std::fs::OpenOptions::new().append(true).open(log.path());
    let kept = file.try_clone().expect("descriptor");
    let mut at_end = kept.try_clone().expect("descriptor");
    std::io::Seek::seek(&mut at_end, std::io::SeekFrom::End(0)).expect("seek");
    let character = Character::new(CharacterKind::File, file.into(), copy.ok());
    let mut character = character.expect("descriptors");
    assert!(character.look());
    assert_eq!(character.write(b"12345"), Written::Bytes(5));
    assert_eq!(character.write(b"678"), Written::Bytes(3));
    assert_eq!(kept.metadata().expect("size").len(), FILE_LIMIT);
    assert_eq!(std::fs::read(log.path()).expect("log"), b"12345678");
    assert_eq!(character.read(&mut [0; 4]), Read::Nothing);
}

#[test]
fn a_watcher_hears_of_clients_and_of_what_they_write() {
    let (_dir, mut character, path) = socket();
    let outer = epoll::create(CreateFlags::CLOEXEC).expect("epoll");
    let flags = EventFlags::IN | EventFlags::ET;
    epoll::add(&outer, character.events(), EventData::new_u64(0), flags).expect("watched");
    let heard = || {
        let mut events = Vec::with_capacity(4);
        let none = rustix::event::Timespec::default();
        let space = rustix::buffer::spare_capacity(&mut events);
        epoll::wait(&outer, space, Some(&none)).expect("wait") > 0
    };
    assert!(!heard());
    let mut client = UnixStream::connect(&path).expect("client");
    assert!(heard());
    assert!(character.look());
    heard();
    client.write_all(b"a").expect("written");
    assert!(heard());
    client.write_all(b"b").expect("written");
    assert!(heard(), "though nobody has read the first");
    drop(client);
    assert!(heard());
}

/// Descriptors that others have, too, as a terminal's: a stream that has ended is watched no more.
#[test]
fn streams_are_used_until_they_end() {
    let (input, mut typed) = std::io::pipe().expect("pipe");
    let (mut seen, output) = std::io::pipe().expect("pipe");
    let _others = [OwnedFd::from(input.try_clone().expect("descriptor"))];
    let character = Character::streams(Some(input.into()), Some(output.into()), None);
    let mut character = character.expect("descriptors");
    let mut buffer = [0; 16];
    assert!(!character.is_terminal());
    assert_eq!(character.read(&mut buffer), Read::Nothing);
    typed.write_all(b"ping").expect("written");
    assert_eq!(character.read(&mut buffer), Read::Bytes(4));
    let mut sent = 0;
    while let Written::Bytes(count) = character.write(&[7; 4096]) {
        assert!((1..=STREAM_CHUNK).contains(&count), "{count}");
        sent += count;
    }
    character.wait(Duration::ZERO);
    let mut all = vec![0; sent];
    seen.read_exact(&mut all).expect("read");
    assert_eq!(character.write(b"pong"), Written::Bytes(4));

    drop((typed, seen));
    assert!(at_once::is_ready(
        character.events(),
        PollFlags::IN,
        Duration::ZERO
    ));
    assert_eq!(character.read(&mut buffer), Read::Nothing);
    assert_eq!(character.write(b"lost"), Written::Bytes(4), "for nobody");
    assert!(!at_once::is_ready(
        character.events(),
        PollFlags::IN,
        Duration::ZERO
    ));
}

#[test]
fn a_file_is_read_to_its_end() {
    let mut file = tempfile::tempfile().expect("file");
    file.write_all(b"ping").expect("written");
    std::io::Seek::rewind(&mut file).expect("seek");
    let character = Character::streams(Some(file.into()), None, None);
    let mut character = character.expect("descriptors");
    let mut buffer = [0; 3];
    assert_eq!(character.read(&mut buffer), Read::Bytes(3));
    assert_eq!(character.read(&mut buffer), Read::Bytes(1));
    for _ in 0..2 {
        assert_eq!(character.read(&mut buffer), Read::Nothing);
    }
}

/// As a log and a console that share a pipe: each finds room that the other takes.
#[test]
fn who_shares_a_pipe_is_not_waited_for() {
    let (_seen, output) = std::io::pipe().expect("pipe");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let output = output.try_clone().expect("descriptor");
            let character = Character::streams(None, Some(output.into()), None);
            let mut character = character.expect("descriptors");
            scope.spawn(move || while character.write(&[7; 4096]) != Written::Full {});
        }
    });
}
