//! `outpost top`: the relay as it works, on a terminal, until somebody presses q.
//!
//! A thread asks the relay over its socket and keeps the last answer; this one draws and reads keys, so
//! that a relay that doesn't answer never makes the keys wait. The terminal is given back as it was, also
//! on a signal or a panic.

mod screen;
mod watch;

use std::{
    io::{self, IsTerminal as _},
    sync::mpsc::{self, Receiver, TryRecvError},
    time::Duration,
};

use clap::Args;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
};
use tokio::signal::unix::{SignalKind, signal};

use self::{
    screen::{Sort, View},
    watch::Watch,
};
use super::{
    Place,
    client::Client,
    exit::{Exit, Failure},
    style::Colours,
};
use crate::{admin::view::Status, config};

/// How long a key may go unnoticed, at most.
const KEYS: Duration = Duration::from_millis(100);

/// A signal is obeyed within this time, whatever the terminal does.
const GONE: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct Top {
    /// How often to look
    #[arg(long, value_name = "TIME", default_value = "1s")]
    interval: String,
    #[command(flatten)]
    colours: Colours,
}

impl Top {
    pub(super) fn run(self, place: &Place) -> Result<(), Failure> {
        let interval = config::parse_duration(&self.interval).filter(|interval| *interval >= KEYS);
        let interval =
            interval.ok_or_else(|| Failure::new(Exit::USAGE, "--interval is 1s, 5s; at least 100ms"))?;
        if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            let words = "this is for a terminal; `outpost status` and `outpost status --json` are for everything else";
            return Err(Failure::new(Exit::USAGE, words));
        }
        // Whatever keeps it from being asked is said before the screen is taken.
        let client = Client::find(place)?;
        client.get::<Status>("/api/v1/status")?;
        let failed = |error: io::Error| Failure::new(Exit::UNAVAILABLE, format!("the terminal: {error}"));
        let signals = signals().map_err(failed)?;
        let watch = Watch::start(client, interval);
        // From here on a panic gives the terminal back before it says anything.
        let mut terminal = ratatui::try_init().map_err(failed)?;
        let shown = show(&mut terminal, &watch, &signals, View::new(self.colours.wanted()));
        ratatui::restore();
        shown.map_err(failed)
    }
}

/// Draws and reads keys until the end is wanted.
fn show(
    terminal: &mut DefaultTerminal,
    watch: &Watch,
    signals: &Receiver<()>,
    mut view: View,
) -> io::Result<()> {
    loop {
        match watch.latest() {
            Ok(Some(seen)) if !view.paused => view.seen(seen),
            Ok(_) => {}
            // Its thread is gone: nothing new would ever come.
            Err(()) => return Ok(()),
        }
        terminal.draw(|frame| screen::draw(frame, &view))?;
        if !matches!(signals.try_recv(), Err(TryRecvError::Empty)) {
            return Ok(());
        }
        if event::poll(KEYS)?
            && let Event::Key(key) = event::read()?
            && key.kind != KeyEventKind::Release
            && !obey(key, watch, &mut view)
        {
            return Ok(());
        }
    }
}

/// Does what a key says; false if that is to end.
fn obey(key: KeyEvent, watch: &Watch, view: &mut View) -> bool {
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
        KeyCode::Char('q') | KeyCode::Esc => return false,
        KeyCode::Char('p' | ' ') => view.paused = !view.paused,
        KeyCode::Char('r') => {
            view.paused = false;
            watch.look_now();
        }
        KeyCode::Char('s') => view.sort = view.sort.next(),
        KeyCode::Char('S') => view.reversed = !view.reversed,
        KeyCode::Char('o') => view.sort = Sort::Oldest,
        _ => {}
    }
    true
}

/// Tells of the first signal that would end us, so that the terminal is given back before.
fn signals() -> io::Result<Receiver<()>> {
    let (tell, told) = mpsc::sync_channel(1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _inside = runtime.enter();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    drop(_inside);
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangup.recv() => {}
            }
        });
        // Whoever listened may have ended already.
        let _ = tell.send(());
        // Whose terminal is gone may never look again: crossterm waits for the rest of a key that will not come.
        std::thread::sleep(GONE);
        ratatui::restore();
        std::process::exit(Exit::UNAVAILABLE.0.into());
    });
    Ok(told)
}
