//! Watches the time and memory of a running script.

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant},
};

use mlua::{Error, HookTriggers, Lua, VmState};

use super::job::Limits;

/// Instructions between two checks.
const CHECK_EVERY: u32 = 40;

/// From this many bytes on every instruction is checked: a single one may then compare or copy
/// megabytes.
const LARGE: usize = 256 << 10;

/// The CPU time of this thread.
fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writing. It stays 0 if the system has no
    // such clock.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// The limits of the current call. Shared by the instruction hook and by natives that run for long.
#[derive(Clone)]
pub struct Clock(Rc<Times>);

struct Times {
    end: Cell<Instant>,
    /// The time of a brief call, which is CPU time.
    brief: Cell<Option<Duration>>,
    /// The thread's CPU time at which a brief call is over; set when its time first seems to be.
    cpu_end: Cell<Option<Duration>>,
    over: Cell<bool>,
    /// Bytes in use from which on every instruction is checked.
    large: Cell<usize>,
    /// Bytes in use from which on the call is treated as one that takes too long.
    most: Cell<usize>,
    /// Largest number of bytes in use.
    limit: Cell<usize>,
}

impl Clock {
    pub fn new() -> Self {
        Self(Rc::new(Times {
            end: Cell::new(Instant::now()),
            brief: Cell::new(None),
            cpu_end: Cell::new(None),
            over: Cell::new(false),
            large: Cell::new(usize::MAX),
            most: Cell::new(usize::MAX),
            limit: Cell::new(usize::MAX),
        }))
    }

    /// Starts a call. `at_rest`: bytes in use before it.
    pub fn start(&self, limits: Limits, at_rest: usize) {
        self.0.end.set(Instant::now() + limits.time);
        self.0.brief.set(limits.brief_memory.map(|_| limits.time));
        self.0.cpu_end.set(None);
        self.0.over.set(false);
        self.0.large.set(at_rest + LARGE);
        self.0.most.set(limits.brief_memory.map_or(usize::MAX, |most| at_rest + most));
        self.0.limit.set(at_rest + limits.memory);
    }

    /// Checks time and memory before this many bytes are allocated at once.
    ///
    /// # Errors
    /// If the script must end, or may not have that much.
    pub fn reserve(&self, lua: &Lua, bytes: usize) -> mlua::Result<()> {
        let used = lua.used_memory();
        if self.over() || used.saturating_add(bytes) > self.0.most.get() {
            return Err(self.end(lua));
        }
        if used.saturating_add(bytes) > self.0.limit.get() {
            return Err(Error::MemoryError("not enough memory".to_owned()));
        }
        Ok(())
    }

    /// Checks time and memory.
    ///
    /// # Errors
    /// If the script must end.
    pub fn check(&self, lua: &Lua) -> mlua::Result<()> {
        let used = lua.used_memory();
        if self.over() || used > self.0.most.get() {
            return Err(self.end(lua));
        }
        if used > self.0.large.get() {
            self.0.large.set(usize::MAX);
            self.watch_every(lua, 1)?;
        }
        Ok(())
    }

    /// Whether the time is over.
    pub fn over(&self) -> bool {
        if !self.0.over.get() {
            let now = Instant::now();
            let over = now >= self.0.end.get() && !self.goes_on(now);
            self.0.over.set(over);
        }
        self.0.over.get()
    }

    /// Whether a brief call whose time has passed goes on: its thread may have waited for a processor.
    /// Its CPU time is measured from here on, because the usual call must not pay for reading it.
    fn goes_on(&self, now: Instant) -> bool {
        let Some(time) = self.0.brief.get() else { return false };
        let cpu = thread_time();
        if cpu.is_zero() || self.0.cpu_end.get().is_some_and(|end| cpu >= end) {
            return false;
        }
        let end = self.0.cpu_end.get().unwrap_or(cpu + time);
        self.0.cpu_end.set(Some(end));
        self.0.end.set(now + (end - cpu));
        true
    }

    /// The script has waited for this long, which is not its time.
    pub fn pause(&self, waited: Duration) {
        self.0.end.set(self.0.end.get() + waited);
    }

    /// Ends the script: returns an error, and from now on every instruction raises one, so that the
    /// script cannot continue after a `pcall`.
    pub fn end(&self, lua: &Lua) -> Error {
        self.0.over.set(true);
        self.watch_every(lua, 1).err().unwrap_or_else(|| Error::runtime("out of time"))
    }

    /// Checks at the usual interval from now on.
    pub fn watch(&self, lua: &Lua) -> mlua::Result<()> {
        self.watch_every(lua, CHECK_EVERY)
    }

    /// Whether every instruction is checked.
    pub fn watches_closely(&self) -> bool {
        self.0.large.get() == usize::MAX
    }

    fn watch_every(&self, lua: &Lua, instructions: u32) -> mlua::Result<()> {
        let clock = self.clone();
        let triggers = HookTriggers::new().every_nth_instruction(instructions);
        lua.set_global_hook(triggers, move |lua, _| {
            if instructions == 1 && clock.over() {
                return Err(Error::runtime("out of time"));
            }
            clock.check(lua).map(|()| VmState::Continue)
        })
    }
}
