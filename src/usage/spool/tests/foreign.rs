//! Tests of foreign files in the folder of a spool: no record of the log is lost because of them, and none of
//! their records is ignored without a report.

use std::collections::BTreeSet;

use super::*;

/// A record of the gateway `who`.
fn of(who: &str, index: u64) -> Entry {
    let json = format!(
        "{{\"process\":\"{who}\",\"sequence\":{},\"x\":\"{}\"}}",
        index + 1,
        "y".repeat(300)
    );
    Entry { index, time: 5, json: json.into() }
}

/// A log of `who` with these indexes, in files of 64 KiB.
fn filled(fixture: &Fixture, who: &str, indexes: std::ops::Range<u64>) -> DiskLog {
    let disk = fixture.open();
    for index in indexes {
        assert!(disk.append(vec![of(who, index)]).is_ok());
    }
    disk
}

/// All records that a reporter gets from its position on.
fn delivered(disk: &DiskLog, reporter: &str) -> Vec<String> {
    let (mut at, mut texts) = (disk.position_of(reporter), Vec::new());
    loop {
        let (entries, next) = disk.read(at, 100).unwrap();
        assert!(entries.windows(2).all(|pair| pair[0].index < pair[1].index));
        assert!(entries.iter().all(|entry| entry.index >= at));
        texts.extend(entries.iter().map(|entry| String::from_utf8(entry.json.to_vec()).unwrap()));
        if next == at {
            return texts;
        }
        assert!(next > at, "it goes on");
        at = next;
    }
}

fn texts(who: &str, indexes: impl IntoIterator<Item = u64>) -> BTreeSet<String> {
    let text = |index| String::from_utf8(of(who, index).json.to_vec()).unwrap();
    indexes.into_iter().map(text).collect()
}

struct Setting {
    own: Fixture,
    other: Fixture,
}

/// The log of `own` with 600 records in several files, and files of `other`.
fn setting(others: std::ops::Range<u64>) -> Setting {
    let own = Fixture::new(&["a"], "max_size: 64MiB, keep: 24h");
    let other = Fixture::new(&["a"], "max_size: 64MiB, keep: 24h");
    drop(filled(&own, "owner", 0..600));
    assert!(own.files().len() >= 4);
    // The log begins at the given index.
    if others.start > 0 {
        fs::create_dir_all(other.path().join("places")).unwrap();
        drop(other.open());
        let mut place =
            super::super::position::PositionFile::open(other.path(), "a", (0, 0)).unwrap().0;
        place.save(others.start).unwrap();
    }
    drop(filled(&other, "other", others));
    Setting { own, other }
}

impl Setting {
    fn adopted(&self) -> u64 {
        self.own.metrics.usage.spool.adopted.get()
    }

    /// Opens the log after a file was put there: all records of the log and the expected records of the file
    /// are delivered at least once, and none is reported as lost.
    fn holds(&self, others: BTreeSet<String>, what: &str) {
        let before = self.own.damaged();
        let disk = self.own.open();
        let got = delivered(&disk, "a");
        let all: BTreeSet<String> = texts("owner", 0..600).union(&others).cloned().collect();
        assert_eq!(got.iter().cloned().collect::<BTreeSet<_>>(), all, "{what}");
        assert_eq!(got.len(), all.len(), "{what}: none twice");
        assert_eq!((self.own.damaged(), self.adopted()), (before, others.len() as u64), "{what}");
        let aside: Vec<_> = fs::read_dir(self.own.path().join("foreign")).unwrap().collect();
        assert_eq!(aside.len(), 1, "{what}: it is kept");
        assert_eq!(self.own.metrics.usage.spool.foreign.get(), 1, "{what}");
        // The log continues, and the next start finds no foreign file.
        assert!(disk.append(vec![of("owner", disk.end())]).is_ok());
        let end = disk.end();
        drop(disk);
        let disk = self.own.open();
        assert_eq!((disk.end(), self.adopted()), (end, others.len() as u64), "{what}");
        let verdict = Archive::open(self.own.path()).unwrap().verify(&mut |_| ()).unwrap();
        assert!(
            !verdict.gaps.iter().any(|gap| matches!(gap, Gap::Log { .. })),
            "{what}: {verdict:?}"
        );
    }
}

/// Where a foreign file may be: beside, over, between and after the files of the log.
#[test]
fn a_segment_of_another_gateway_costs_no_record_of_either() {
    for first in [1, 50, 100, 350, 599] {
        let setting = setting(first..first + 80);
        let file = setting.other.files().into_iter().next_back().unwrap();
        fs::copy(&file, setting.own.path().join(file.file_name().unwrap())).unwrap();
        setting.holds(texts("other", first..first + 80), &format!("at {first}"));
    }
}

#[test]
fn a_longer_one_costs_no_record_either() {
    for n in [100, 400] {
        let setting = setting(250..250 + n);
        let files = setting.other.files();
        let file = files.iter().find(|file| file.to_string_lossy().contains("250.log")).unwrap();
        fs::copy(file, setting.own.path().join(file.file_name().unwrap())).unwrap();
        let there: BTreeSet<String> = {
            let indexes = Archive::open(setting.other.path()).unwrap();
            let next =
                indexes.segments().iter().find(|s| s.first > 250).map_or(250 + n, |s| s.first);
            texts("other", 250..next)
        };
        setting.holds(there, &format!("{n} records"));
    }
}

#[test]
fn a_copy_of_a_segment_under_another_name_is_known_as_such() {
    for (number, name) in [(0, 7), (0, 590), (1, 3), (2, 1), (3, 0), (3, 10_000)] {
        let setting = setting(0..1);
        let files = setting.own.files();
        let to = setting.own.path().join(format!("{name:020}.log"));
        if to.exists() {
            continue;
        }
        fs::copy(&files[number], to).unwrap();
        // The log already has these records.
        setting.holds(BTreeSet::new(), &format!("{number} as {name}"));
    }
}

#[test]
fn a_segment_that_replaced_one_of_the_log_is_delivered_and_the_loss_is_told() {
    let setting = setting(0..600);
    let (mine, theirs) = (setting.own.files(), setting.other.files());
    assert_eq!(mine[1].file_name(), theirs[1].file_name());
    let replaced: BTreeSet<String> = {
        let segments = Archive::open(setting.other.path()).unwrap();
        texts("other", segments.segments()[1].first..segments.segments()[2].first)
    };
    fs::copy(&theirs[1], &mine[1]).unwrap();
    let disk = setting.own.open();
    let got: BTreeSet<String> = delivered(&disk, "a").into_iter().collect();
    assert!(replaced.is_subset(&got));
    // Only the sequence numbers show that it is foreign.
    let verdict = Archive::open(setting.own.path()).unwrap().verify(&mut |_| ()).unwrap();
    assert!(verdict.gaps.iter().any(|gap| matches!(gap, Gap::Sequence { .. })), "{verdict:?}");
}

#[test]
fn a_file_that_is_put_there_while_the_log_is_written_is_not_written_over() {
    let setting = setting(0..1);
    let disk = setting.own.open();
    // The name of the next segment is not known in advance: a file is put at every possible one.
    let stranger = setting.other.files().remove(0);
    for index in 601..900 {
        fs::copy(&stranger, setting.own.path().join(format!("{index:020}.log"))).unwrap();
    }
    for index in 600..850 {
        assert!(disk.append(vec![of("owner", index)]).is_ok());
    }
    let got: BTreeSet<String> = delivered(&disk, "a").into_iter().collect();
    assert_eq!(got, texts("owner", 0..850));
    let aside = fs::read_dir(setting.own.path().join("foreign")).unwrap().count();
    assert!(aside > 0, "it was put aside");
    // The next start finds all of them, and adds the record of each.
    drop(disk);
    let disk = setting.own.open();
    let got: BTreeSet<String> = delivered(&disk, "a").into_iter().collect();
    let all: BTreeSet<String> =
        texts("owner", 0..850).union(&texts("other", 0..1)).cloned().collect();
    assert_eq!(got, all);
}

#[test]
fn files_with_odd_names_are_told_of() {
    let setting = setting(0..50);
    let file = setting.other.files().remove(0);
    for name in ["00000000000000000000.log.bak", "00000000000000000000 (copy).log", "7.log"] {
        fs::copy(&file, setting.own.path().join(name)).unwrap();
    }
    let disk = setting.own.open();
    assert_eq!(setting.own.metrics.usage.spool.foreign.get(), 3);
    let verdict = Archive::open(setting.own.path()).unwrap().verify(&mut |_| ()).unwrap();
    assert_eq!((verdict.unread_files.len(), verdict.is_intact()), (3, false));
    let got: BTreeSet<String> = delivered(&disk, "a").into_iter().collect();
    assert_eq!(got, texts("owner", 0..600));
    for name in ["00000000000000000000.log.bak", "00000000000000000000 (copy).log", "7.log"] {
        fs::remove_file(setting.own.path().join(name)).unwrap();
    }
    disk.set(&setting.own.plan).unwrap();
    assert_eq!(setting.own.metrics.usage.spool.foreign.get(), 0);
    let verdict = Archive::open(setting.own.path()).unwrap().verify(&mut |_| ()).unwrap();
    assert!(verdict.is_intact(), "{verdict:?}");
}

#[test]
fn without_room_what_is_foreign_is_counted_and_kept() {
    let setting = setting(100..250);
    let files = setting.other.files();
    let file = files.last().unwrap();
    fs::copy(file, setting.own.path().join(file.file_name().unwrap())).unwrap();
    // The reporter needs every record, and the spool is full.
    let full = plan(&["a"], "max_size: 256KiB, keep: 24h");
    let disk = DiskLog::open(setting.own.path(), &full, setting.own.metrics.usage.clone()).unwrap();
    let place = setting.own.path().join("places/a");
    assert!(place.exists());
    disk.set(&full).unwrap();
    let lost = setting.own.metrics.usage.lost.with_label_values(&["foreign"]).get();
    assert_eq!(lost + setting.adopted(), 150);
    assert!(lost > 0);
    assert_eq!(fs::read_dir(setting.own.path().join("foreign")).unwrap().count(), 1);
    let got: BTreeSet<String> = delivered(&disk, "a").into_iter().collect();
    assert!(texts("owner", 0..600).is_subset(&got));
}

#[test]
fn a_file_wholly_in_front_of_the_log_is_put_aside_and_not_deleted() {
    for (others, keep) in [(0..100, "0s"), (0..300, "0s"), (300..499, "24h")] {
        let own = Fixture::new(&["a"], &format!("max_size: 64MiB, keep: {keep}"));
        let other = Fixture::new(&["a"], "max_size: 64MiB, keep: 24h");
        drop(filled(&other, "other", 0..others.end));
        fs::create_dir_all(own.path().join("places")).unwrap();
        let mut place =
            super::super::position::PositionFile::open(own.path(), "a", (0, 0)).unwrap().0;
        place.save(500).unwrap();
        drop(filled(&own, "owner", 500..600));
        let theirs: Vec<_> = {
            let archive = Archive::open(other.path()).unwrap();
            let fits = archive.segments().iter().filter(|s| s.first >= others.start);
            fits.map(|s| s.path.clone()).collect()
        };
        assert!(!theirs.is_empty());
        for file in &theirs {
            fs::copy(file, own.path().join(file.file_name().unwrap())).unwrap();
        }
        let disk = own.open();
        disk.trim();
        let aside: Vec<_> = fs::read_dir(own.path().join("foreign")).unwrap().flatten().collect();
        assert_eq!(aside.len(), theirs.len(), "{others:?}");
        for file in &aside {
            let same = other.path().join(file.file_name());
            assert_eq!(fs::read(file.path()).unwrap(), fs::read(same).unwrap(), "{others:?}");
        }
        assert_eq!(own.metrics.usage.spool.foreign.get(), theirs.len() as i64);
        let got: BTreeSet<String> = delivered(&disk, "a").into_iter().collect();
        assert_eq!((got, own.damaged()), (texts("owner", 500..600), 0), "{others:?}");
        drop(disk);
        assert_eq!(own.open().first(), 500);
    }
}

/// Records that a reporter still needs are delivered before the file is moved aside.
#[test]
fn a_file_before_a_gap_that_somebody_wants_is_put_aside_when_nobody_does() {
    let own = Fixture::new(&["a"], "max_size: 64MiB, keep: 0s");
    let other = Fixture::new(&["a"], "max_size: 64MiB, keep: 24h");
    drop(filled(&other, "other", 0..100));
    fs::create_dir_all(own.path().join("places")).unwrap();
    let mut place = super::super::position::PositionFile::open(own.path(), "a", (0, 0)).unwrap().0;
    place.save(500).unwrap();
    drop(filled(&own, "owner", 500..900));
    let (mine, theirs) = (own.files(), other.files().remove(0));
    let front = own.path().join(theirs.file_name().unwrap());
    fs::copy(&theirs, &front).unwrap();
    place.save(0).unwrap();
    let disk = own.open();
    let got: BTreeSet<String> = delivered(&disk, "a").into_iter().collect();
    assert_eq!(got, texts("other", 0..100).union(&texts("owner", 500..900)).cloned().collect());
    assert_eq!(own.damaged(), 400);
    assert!(front.exists());
    disk.save_position("a", 900).unwrap();
    disk.trim();
    assert!(
        !front.exists() && own.path().join("foreign").join(theirs.file_name().unwrap()).exists()
    );
    assert!(!mine[0].exists(), "what follows the gap is deleted as ever");
}

/// A missing file between others of the same process does not make them foreign.
#[test]
fn a_gap_in_one_run_of_the_gateway_is_its_own() {
    let own = Fixture::new(&["a"], "max_size: 64MiB, keep: 0s");
    drop(filled(&own, "owner", 0..600));
    let archive = Archive::open(own.path()).unwrap();
    let [.., gone, last] = archive.segments() else { panic!("several files") };
    fs::remove_file(&gone.path).unwrap();
    let disk = own.open();
    let got: BTreeSet<String> = delivered(&disk, "a").into_iter().collect();
    assert_eq!(got, texts("owner", (0..gone.first).chain(last.first..600)));
    assert_eq!((own.damaged(), disk.end()), (last.first - gone.first, 600));
    disk.save_position("a", 600).unwrap();
    disk.trim();
    assert_eq!(own.files(), std::slice::from_ref(&last.path));
    assert!(!own.path().join("foreign").exists());
}

#[test]
fn a_file_ahead_of_the_log_is_taken_over_and_nothing_is_called_lost() {
    for first in [601, 5000, 1_000_000] {
        let setting = setting(first..first + 80);
        let file = setting.other.files().into_iter().next_back().unwrap();
        fs::copy(&file, setting.own.path().join(file.file_name().unwrap())).unwrap();
        setting.holds(texts("other", first..first + 80), &format!("at {first}"));
    }
}

/// The active file belongs to the log even if the file before it is damaged at its end.
#[test]
fn a_file_behind_damage_is_no_stranger() {
    let own = Fixture::new(&["a"], "max_size: 64MiB, keep: 24h");
    drop(filled(&own, "owner", 0..600));
    let files = own.files();
    let before = &files[files.len() - 2];
    let mut bytes = fs::read(before).unwrap();
    let at = bytes.len() - 100;
    bytes[at..].fill(0);
    fs::write(before, bytes).unwrap();
    let disk = own.open();
    let got = delivered(&disk, "a");
    assert_eq!((got.len(), own.damaged(), disk.end()), (599, 1, 600));
    assert!(!own.path().join("foreign").exists());
}

#[test]
fn what_cannot_be_read_is_no_reason_not_to_start() {
    for first in [0, 7, 590, 5000] {
        let setting = setting(0..1);
        let path = setting.own.path().join(format!("{first:020}.log"));
        let kept = path.with_extension("kept");
        let taken = path.exists();
        if taken {
            fs::rename(&path, &kept).unwrap();
        }
        fs::create_dir(&path).unwrap();
        let disk = setting.own.open();
        if !taken {
            let got: BTreeSet<String> = delivered(&disk, "a").into_iter().collect();
            assert_eq!((got, setting.own.damaged()), (texts("owner", 0..600), 0), "{first}");
        }
        assert_eq!(disk.end(), 600);
        assert!(path.is_dir(), "it stays");
    }
}

/// The same for unreadable files: no user can read a link to a folder.
#[test]
fn a_file_that_cannot_be_read_is_own_only_where_there_is_room_for_it() {
    for first in [7, 590, 5000] {
        let setting = setting(0..1);
        let path = setting.own.path().join(format!("{first:020}.log"));
        std::os::unix::fs::symlink(setting.own.path().join("places"), &path).unwrap();
        let disk = setting.own.open();
        let got: BTreeSet<String> = delivered(&disk, "a").into_iter().collect();
        assert_eq!((got, setting.own.damaged()), (texts("owner", 0..600), 0), "{first}");
    }
    let setting = setting(0..1);
    let files = setting.own.files();
    let kept = setting.own.path().join("kept");
    fs::rename(&files[1], &kept).unwrap();
    std::os::unix::fs::symlink(setting.own.path().join("places"), &files[1]).unwrap();
    let disk = setting.own.open();
    // The reporter waits for it.
    let first = Archive::open(setting.own.path()).unwrap().segments()[1].first;
    assert!(disk.read(first, 100).unwrap_err().contains(&files[1].display().to_string()));
    fs::remove_file(&files[1]).unwrap();
    fs::rename(&kept, &files[1]).unwrap();
    drop(disk);
    let disk = setting.own.open();
    let got: BTreeSet<String> = delivered(&disk, "a").into_iter().collect();
    assert_eq!((got, setting.own.damaged()), (texts("owner", 0..600), 0));
}

#[test]
fn a_file_in_front_that_cannot_be_read_is_put_aside_and_not_deleted() {
    let own = Fixture::new(&["a"], "max_size: 64MiB, keep: 0s");
    fs::create_dir_all(own.path().join("places")).unwrap();
    let mut place = super::super::position::PositionFile::open(own.path(), "a", (0, 0)).unwrap().0;
    place.save(500).unwrap();
    drop(filled(&own, "owner", 500..600));
    let name = format!("{:020}.log", 7);
    std::os::unix::fs::symlink(own.path().join("places"), own.path().join(&name)).unwrap();
    let disk = own.open();
    disk.trim();
    assert!(own.path().join("foreign").join(&name).is_symlink());
    assert_eq!((disk.first(), own.metrics.usage.spool.foreign.get(), own.damaged()), (500, 1, 0));
}
