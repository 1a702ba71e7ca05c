//! Tests of the log on disk: written records are read back, after restarts and after damage to its files.

mod foreign;

use std::{fs, path::Path};

use proptest::prelude::*;

use super::{
    Archive, Damage, Entry, Gap,
    disk::DiskLog,
    frame,
    memory::MemoryLog,
    record_log::{AppendErrorKind, RecordLog},
};
use crate::{
    config::{self, plan::UsagePlan},
    telemetry::Metrics,
};

/// A plan with these reporters, and more keys of `usage.spool`.
fn plan(reporters: &[&str], more: &str) -> UsagePlan {
    let more = match more.contains("max_size") {
        true => more.to_owned(),
        false => format!("max_size: 256KiB, {more}"),
    };
    let list: Vec<_> = reporters
        .iter()
        .map(|name| format!("{{name: {name}, type: file, file: {{path: x}}}}"))
        .collect();
    let text = format!(
        "backends: [{{url: \"http://x\"}}]\nusage: {{spool: {{segment_size: 64KiB, {more}}}, \
         reporters: [{}]}}\n",
        list.join(", ")
    );
    let loaded = config::load_text(&text, Path::new("."), &|_| None);
    loaded.plan.unwrap_or_else(|| panic!("{:?}", loaded.problems)).usage
}

struct Fixture {
    folder: tempfile::TempDir,
    metrics: Metrics,
    plan: UsagePlan,
}

impl Fixture {
    fn new(reporters: &[&str], more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder, metrics: Metrics::new(), plan: plan(reporters, more) }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn open(&self) -> DiskLog {
        let disk = DiskLog::open(self.path(), &self.plan, self.metrics.usage.clone()).unwrap();
        disk.set(&self.plan).unwrap();
        disk
    }

    fn damaged(&self) -> u64 {
        self.metrics.usage.lost.with_label_values(&["damaged"]).get()
    }

    /// The files of the log, the oldest first.
    fn files(&self) -> Vec<std::path::PathBuf> {
        let archive = Archive::open(self.path()).unwrap();
        archive.segments().iter().map(|segment| segment.path.clone()).collect()
    }
}

fn json(index: u64, size: usize) -> Vec<u8> {
    let mut text = format!("{{\"process\":\"gw\",\"sequence\":{},\"x\":\"", index + 1).into_bytes();
    text.resize(text.len() + size, b'x');
    text.extend_from_slice(b"\"}");
    text
}

/// Appends a number of records of one size.
fn add(disk: &DiskLog, n: u64, size: usize) -> Result<(), String> {
    let first = disk.end();
    let entries = (first..first + n).map(|index| Entry {
        index,
        time: index as i64,
        json: json(index, size).into(),
    });
    disk.append(entries.collect()).map_err(|full| full.why)
}

/// All indexes from one on, as a reporter reads them, and the index to continue from.
fn indexes(disk: &dyn RecordLog, from: u64, most: usize) -> (Vec<u64>, u64) {
    let (mut seen, mut at) = (Vec::new(), from);
    loop {
        let (entries, next) = disk.read(at, most).unwrap();
        assert!(entries.len() <= most);
        for entry in &entries {
            assert!(entry.json.starts_with(&json(entry.index, 0)[..10]));
            seen.push(entry.index);
        }
        if next == at {
            return (seen, at);
        }
        at = next;
    }
}

fn all(n: u64) -> Vec<u64> {
    (0..n).collect()
}

#[test]
fn records_outlive_the_process_and_segments_follow_each_other() {
    let fixture = Fixture::new(&["a"], "keep: 0");
    let disk = fixture.open();
    for n in [1, 3, 200, 96] {
        add(&disk, n, 500).unwrap();
    }
    assert_eq!(indexes(&disk, 0, 7), (all(300), 300));
    drop(disk);
    let disk = fixture.open();
    assert_eq!(disk.end(), 300);
    assert_eq!(indexes(&disk, 0, 1000), (all(300), 300));
    assert_eq!(indexes(&disk, 290, 3), ((290..300).collect(), 300));
    assert!(fixture.files().len() > 2, "{:?}", fixture.files());
    let archive = Archive::open(fixture.path()).unwrap();
    assert_eq!(archive.bounds().unwrap(), (0, 300));
    let verdict = archive.verify(&mut |_| ()).unwrap();
    assert!(verdict.is_intact() && verdict.records == 300 && verdict.torn == 0, "{verdict:?}");
    assert_eq!(verdict.bytes, archive.bytes());
    let times: Vec<_> = archive.records(298).map(|entry| entry.unwrap().time).collect();
    assert_eq!(times, [298, 299]);
}

#[test]
fn only_one_process_uses_a_folder() {
    let fixture = Fixture::new(&["a"], "");
    let _disk = fixture.open();
    let metrics = fixture.metrics.usage.clone();
    let why = DiskLog::open(fixture.path(), &fixture.plan, metrics).err().unwrap();
    assert!(why.contains("another llmproxy uses"), "{why}");
}

#[test]
fn places_are_kept_and_new_reporters_begin_at_the_end() {
    let mut fixture = Fixture::new(&["a"], "");
    let disk = fixture.open();
    add(&disk, 10, 10).unwrap();
    assert_eq!(disk.position_of("a"), 0);
    disk.save_position("a", 4).unwrap();
    drop(disk);
    fixture.plan = plan(&["a", "b"], "");
    let disk = fixture.open();
    assert_eq!((disk.position_of("a"), disk.position_of("b")), (4, 10));
    disk.save_position("b", 10).unwrap();
    add(&disk, 5, 10).unwrap();
    // A reporter that is removed and added again gets every record that still exists.
    disk.set(&plan(&["b"], "")).unwrap();
    disk.save_position("a", 99).unwrap();
    disk.set(&fixture.plan).unwrap();
    assert_eq!((disk.position_of("a"), disk.position_of("b")), (4, 10));
    let archive = Archive::open(fixture.path()).unwrap();
    let positions = [("a".to_owned(), Some(4)), ("b".to_owned(), Some(10))];
    assert_eq!(archive.positions().unwrap(), positions);
}

#[test]
fn a_place_that_is_damaged_means_that_all_is_delivered_again() {
    let fixture = Fixture::new(&["a"], "");
    let disk = fixture.open();
    add(&disk, 10, 10).unwrap();
    disk.save_position("a", 9).unwrap();
    drop(disk);
    fs::write(fixture.path().join("places/a"), "?").unwrap();
    assert_eq!(fixture.open().position_of("a"), 0);
}

#[test]
fn no_index_is_used_twice_when_the_end_is_lost() {
    let fixture = Fixture::new(&["a"], "");
    let disk = fixture.open();
    add(&disk, 10, 10).unwrap();
    disk.save_position("a", 10).unwrap();
    drop(disk);
    // A power failure: the position reached the disk, but the last records did not.
    let file = fixture.files().pop().unwrap();
    let len = fs::metadata(&file).unwrap().len();
    let lost: usize = (7..10).map(|index| frame::HEAD + json(index, 10).len()).sum();
    fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(len - lost as u64).unwrap();
    let disk = fixture.open();
    assert_eq!((disk.end(), disk.position_of("a")), (10, 10));
    add(&disk, 2, 10).unwrap();
    assert_eq!(indexes(&disk, disk.position_of("a"), 5), (vec![10, 11], 12));
    assert_eq!(indexes(&disk, 0, 5).0, [0, 1, 2, 3, 4, 5, 6, 10, 11]);
}

#[test]
fn what_was_half_written_is_cut_off() {
    let fixture = Fixture::new(&["a"], "");
    let disk = fixture.open();
    add(&disk, 3, 10).unwrap();
    drop(disk);
    let file = fixture.files().pop().unwrap();
    let whole = fs::read(&file).unwrap();
    let record = frame::HEAD + json(2, 10).len();
    for cut in 1..record {
        fs::write(&file, &whole[..whole.len() - cut]).unwrap();
        let archive = Archive::open(fixture.path()).unwrap();
        let verdict = archive.verify(&mut |_| ()).unwrap();
        assert!(verdict.is_intact(), "{verdict:?}");
        assert_eq!(verdict.torn as usize, record - cut);
        let disk = fixture.open();
        assert_eq!(disk.end(), 2, "{cut}");
        add(&disk, 1, 10).unwrap();
        assert_eq!(indexes(&disk, 0, 5).0, [0, 1, 2]);
    }
}

#[test]
fn a_file_that_was_only_just_begun_is_begun_again() {
    for len in [0, 5] {
        let fixture = Fixture::new(&["a"], "");
        let disk = fixture.open();
        add(&disk, 3, 10).unwrap();
        drop(disk);
        fs::write(fixture.path().join(format!("{:020}.log", 3)), &b"llmproxy"[..len]).unwrap();
        let disk = fixture.open();
        add(&disk, 2, 10).unwrap();
        assert_eq!(indexes(&disk, 0, 5).0, all(5));
        assert_eq!(fixture.files().len(), 2);
    }
}

#[test]
fn damage_is_counted_once_and_the_rest_is_read() {
    let fixture = Fixture::new(&["a"], "");
    let disk = fixture.open();
    add(&disk, 300, 500).unwrap();
    drop(disk);
    let files = fixture.files();
    let mut bytes = fs::read(&files[1]).unwrap();
    let first = Archive::open(fixture.path()).unwrap().segments()[1].first;
    // Two adjacent records, in the second file.
    let record = frame::HEAD + json(first, 500).len();
    let at = 16 + 5 * record + 30;
    bytes[at] ^= 1;
    bytes[at + record] ^= 1;
    fs::write(&files[1], bytes).unwrap();
    let disk = fixture.open();
    let rest: Vec<_> =
        all(300).into_iter().filter(|i| !(first + 5..first + 7).contains(i)).collect();
    assert_eq!(indexes(&disk, 0, 10), (rest.clone(), 300));
    assert_eq!(indexes(&disk, 0, 100).0, rest);
    assert_eq!(fixture.damaged(), 2);
    let verdict = Archive::open(fixture.path()).unwrap().verify(&mut |_| ()).unwrap();
    assert_eq!(verdict.records, 298);
    assert!(matches!(&verdict.damage[..], [Damage { bytes, .. }] if *bytes == 2 * record as u64));
    let lost = Gap::Sequence { process: "gw".to_owned(), from: first + 6, lost: 2 };
    assert_eq!(verdict.gaps, [Gap::Log { from: first + 5, lost: 2 }, lost]);
}

#[test]
fn a_file_that_is_gone_or_nothing_but_noise_costs_only_what_was_in_it() {
    for noise in [None, Some(vec![7u8; 60_000])] {
        let fixture = Fixture::new(&["a"], "");
        let disk = fixture.open();
        add(&disk, 300, 500).unwrap();
        let archive = Archive::open(fixture.path()).unwrap();
        let [_, second, third, ..] = archive.segments() else { panic!("three files") };
        // While the log is open, and before the next start.
        match &noise {
            None => fs::remove_file(&second.path).unwrap(),
            Some(noise) => fs::write(&second.path, noise).unwrap(),
        }
        let rest: Vec<_> =
            all(300).into_iter().filter(|i| !(second.first..third.first).contains(i)).collect();
        // A reporter that keeps up reads the last records from memory.
        assert_eq!(indexes(&disk, 0, 10).0, all(300));
        drop(disk);
        let disk = fixture.open();
        assert_eq!(indexes(&disk, 0, 10), (rest, 300));
        assert_eq!(fixture.damaged(), third.first - second.first);
    }
}

#[test]
fn delivered_segments_make_room_and_undelivered_ones_do_not() {
    let fixture = Fixture::new(&["a", "b"], "keep: 1h");
    let disk = fixture.open();
    add(&disk, 400, 500).unwrap();
    let why = add(&disk, 400, 500).unwrap_err();
    assert!(why.contains("usage.spool.max_size"), "{why}");
    let end = disk.end();
    assert!((400..800).contains(&end), "what had room was written: {end}");
    // One of two reporters has delivered it.
    disk.save_position("a", end).unwrap();
    assert!(add(&disk, 100, 500).is_err());
    disk.save_position("b", 300).unwrap();
    add(&disk, 100, 500).unwrap();
    assert_eq!(indexes(&disk, 300, 50).0, (300..disk.end()).collect::<Vec<_>>());
    let bytes: u64 = Archive::open(fixture.path()).unwrap().bytes();
    assert!(bytes <= 256 << 10, "{bytes}");
}

#[test]
fn what_is_delivered_is_kept_for_as_long_as_it_should_be() {
    for (keep, left) in [("0", 1), ("1h", 4)] {
        let fixture = Fixture::new(&["a"], &format!("keep: {keep}"));
        let disk = fixture.open();
        add(&disk, 400, 500).unwrap();
        disk.save_position("a", 400).unwrap();
        disk.set(&fixture.plan).unwrap();
        disk.trim();
        assert_eq!(fixture.files().len(), left, "{keep}");
        assert_eq!(disk.end(), 400);
    }
}

#[test]
fn the_oldest_can_be_dropped() {
    let fixture = Fixture::new(&["a", "b"], "");
    let disk = fixture.open();
    add(&disk, 1000, 500).unwrap_err();
    let archive = Archive::open(fixture.path()).unwrap();
    let (second, end) = (archive.segments()[1].first, disk.end());
    disk.save_position("a", end).unwrap();
    disk.save_position("b", 10).unwrap();
    assert_eq!(disk.drop_oldest(), Some(second - 10));
    add(&disk, 10, 500).unwrap();
    assert_eq!(indexes(&disk, 10, 10).0, (second..end + 10).collect::<Vec<_>>());
    // Dropped records are not reported as damaged.
    assert_eq!(fixture.damaged(), 0);
    while disk.drop_oldest().is_some() {}
    assert_eq!(fixture.files().len(), 1);
}

#[test]
fn a_record_larger_than_a_segment_has_one_of_its_own() {
    let fixture = Fixture::new(&["a"], "");
    let disk = fixture.open();
    add(&disk, 2, 10).unwrap();
    add(&disk, 1, 100_000).unwrap();
    add(&disk, 1, 10).unwrap();
    drop(disk);
    assert_eq!(indexes(&fixture.open(), 0, 10).0, all(4));
    assert_eq!(fixture.files().len(), 3);
}

#[test]
fn a_plan_that_cannot_be_had_changes_nothing() {
    let fixture = Fixture::new(&["a"], "");
    let disk = fixture.open();
    add(&disk, 10, 10).unwrap();
    let in_the_way = fixture.path().join("places/c");
    fs::create_dir(&in_the_way).unwrap();
    let more = plan(&["a", "b", "c"], "max_size: 512KiB");
    assert!(disk.set(&more).unwrap_err().contains("reporter c"));
    add(&disk, 1000, 500).unwrap_err();
    fs::remove_dir(in_the_way).unwrap();
    disk.set(&more).unwrap();
    // The first attempt has not left a position for `b`.
    disk.save_position("a", disk.end()).unwrap();
    disk.save_position("c", disk.end()).unwrap();
    assert_eq!(disk.position_of("b"), 10);
    disk.save_position("b", 12).unwrap();
    add(&disk, 1000, 500).unwrap_err();
    assert_eq!(disk.first(), 0, "what `b` has not delivered is still there");
    drop(disk);
    assert_eq!(
        DiskLog::open(fixture.path(), &more, fixture.metrics.usage.clone()).unwrap().first(),
        0
    );
    let positions = Archive::open(fixture.path()).unwrap().positions().unwrap();
    assert!(positions.contains(&("b".to_owned(), Some(12))), "{positions:?}");
}

#[test]
fn only_want_of_room_makes_room() {
    let fixture = Fixture::new(&["a"], "keep: 1h");
    let disk = fixture.open();
    add(&disk, 200, 500).unwrap();
    disk.save_position("a", 200).unwrap();
    let files = fixture.files().len();
    // The next segment cannot be created, for a reason other than space.
    let active = Archive::open(fixture.path()).unwrap().segments().last().unwrap().clone();
    let size = frame::HEAD as u64 + json(200, 500).len() as u64;
    let next = 200 + ((64 << 10) - active.bytes) / size;
    let in_the_way = fixture.path().join(format!("{next:020}.log"));
    fs::create_dir(&in_the_way).unwrap();
    let entries = (200..300).map(|index| Entry { index, time: 0, json: json(index, 500).into() });
    let full = disk.append(entries.collect()).err().unwrap();
    assert_eq!((full.kind, full.records[0].index), (AppendErrorKind::Broken, next), "{}", full.why);
    assert_eq!(fixture.files().len(), files, "nothing was removed");
    fs::remove_dir(in_the_way).unwrap();
    disk.append(full.records).map_err(|full| full.why).unwrap();
    assert_eq!(indexes(&disk, 0, 100).0, all(300));
}

#[test]
fn what_was_removed_by_hand_is_told_of() {
    let fixture = Fixture::new(&["a"], "");
    let disk = fixture.open();
    add(&disk, 300, 500).unwrap();
    let archive = Archive::open(fixture.path()).unwrap();
    let second = archive.segments()[1].first;
    drop(disk);
    fs::remove_file(&archive.segments()[0].path).unwrap();
    let disk = fixture.open();
    assert_eq!((disk.position_of("a"), disk.first()), (second, second));
    assert_eq!(fixture.damaged(), second);
    // The active file: a new one is created, and new records are safe.
    fs::remove_file(fixture.files().pop().unwrap()).unwrap();
    disk.set(&fixture.plan).unwrap();
    disk.trim();
    add(&disk, 5, 10).unwrap();
    drop(disk);
    let left = Archive::open(fixture.path()).unwrap();
    let indexes: Vec<_> = left.records(0).map(|entry| entry.unwrap().index).collect();
    assert!(indexes.ends_with(&[300, 301, 302, 303, 304]), "{indexes:?}");
}

#[test]
fn in_memory_a_reporter_that_is_behind_costs_nobody_else_anything() {
    let fixture = Fixture::new(&[], "");
    let mut both = plan(&["good", "bad"], "");
    both.queue_size = 5;
    let memory = MemoryLog::new(fixture.metrics.usage.clone());
    memory.set(&both).unwrap();
    let append = |from: u64, n: u64| {
        let entries = (from..from + n).map(|i| Entry { index: i, time: 0, json: "{}".into() });
        memory.append(entries.collect()).map_err(|full| full.records.len())
    };
    append(0, 3).unwrap();
    memory.save_position("good", 3).unwrap();
    append(3, 4).unwrap();
    assert_eq!(indexes_in(&memory, 3), [3, 4, 5, 6]);
    assert_eq!(indexes_in(&memory, 0), [2, 3, 4, 5, 6]);
    // Only one waiting record was delivered by any reporter: of two new records one is lost.
    assert_eq!(append(7, 2), Err(1));
    assert_eq!(indexes_in(&memory, 0), [3, 4, 5, 6, 7]);
    // Without the slow reporter nothing waits.
    memory.save_position("good", 8).unwrap();
    let mut good = plan(&["good"], "");
    good.queue_size = 5;
    memory.set(&good).unwrap();
    assert_eq!(memory.first(), 8);
    append(8, 5).unwrap();
}

fn indexes_in(log: &dyn RecordLog, from: u64) -> Vec<u64> {
    log.read(from, 100).unwrap().0.iter().map(|entry| entry.index).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Appends and deliveries, with restarts at which the last file is cut or damaged: no record is read twice
    /// or out of order, and only damaged records are missing.
    #[test]
    fn restarts_and_damage(
        turns in prop::collection::vec((1u64..60, 0usize..900, 0u8..4, any::<u16>()), 1..10),
        most in 1usize..50,
    ) {
        let fixture = Fixture::new(&["a"], "max_size: 1GiB, keep: 1h");
        let mut disk = fixture.open();
        let mut written = std::collections::BTreeSet::new();
        for (n, size, what, dice) in turns {
            let first = disk.end();
            add(&disk, n, size).unwrap();
            written.extend(first..first + n);
            drop(disk);
            let file = fixture.files().pop().unwrap();
            let mut bytes = fs::read(&file).unwrap();
            match what {
                // Cut somewhere after the header.
                0 => bytes.truncate(16 + usize::from(dice) % (bytes.len() - 15)),
                1 => {
                    let at = usize::from(dice) % bytes.len();
                    bytes[at] ^= 0x55;
                }
                _ => {}
            }
            fs::write(&file, bytes).unwrap();
            let archive = Archive::open(fixture.path()).unwrap();
            written = archive.records(0).map(|entry| entry.unwrap().index).collect();
            disk = fixture.open();
        }
        let (seen, end) = indexes(&disk, 0, most);
        prop_assert_eq!(end, disk.end());
        prop_assert_eq!(seen, written.into_iter().collect::<Vec<_>>());
    }
}
