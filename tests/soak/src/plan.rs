//! What one life shall be: drawn from its seed before anything runs, so that the same
//! seed and number give the same plan again. Pure; the timing is the machine's.

use std::fmt;

use vigil_lab::Spec;
use vigil_lab::bundle::Stdio;
use vigil_sim::rng::Rng;

/// Which of the two processes are killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Victims {
    /// Reaper and shim.
    Both,
    /// The shim alone.
    Shim,
    /// The reaper alone.
    Reaper,
    /// The reaper, then the shim, and so on.
    Alternating,
}

impl Victims {
    /// Whether one of the two lives on each time, and with it the container.
    #[must_use]
    pub fn one_lives_on(self) -> bool {
        self != Self::Both
    }

    /// Whether the blow of this number, from 1, is the reaper's.
    #[must_use]
    pub fn hits_the_reaper(self, number: u64) -> bool {
        match self {
            Self::Both | Self::Shim => false,
            Self::Reaper => true,
            Self::Alternating => !number.is_multiple_of(2),
        }
    }
}

/// What init does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Script {
    /// Lives until it is killed; SIGTERM makes it exit with the code.
    Sleeper,
    /// Exits by itself after so many milliseconds.
    Timed(u32),
    /// Prints so many lines and exits.
    Chatter(u32),
    /// Shares the host's pids, and leaves processes behind when it exits after so many milliseconds.
    Litter(u32),
}

/// One thing a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the verbs'")]
pub enum Step {
    /// `containerd-shim-vigil-v2 start`.
    Bootstrap,
    Create,
    Start,
    /// Registers and starts a process that exits with the code after so many milliseconds.
    Exec {
        code: u32,
        ms: u32,
        wait: bool,
        how: How,
    },
    Pause,
    Resume,
    Update,
    Kill(u32),
    Stats,
    Pids,
    /// Does nothing for so many milliseconds.
    Idle(u32),
    /// Wait of init.
    Wait,
    Delete,
    Shutdown,
}

/// How an exec talks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Says one word.
    Plain,
    /// The same on a terminal.
    Terminal,
    /// Gives back so many numbered lines of its stdin.
    Stdin(u32),
}

/// One more blow, to whoever has the victim's place then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Again {
    /// It falls in this step, or in the one in which the last fell …
    pub step: usize,
    /// … so long after the step was begun, or after the last blow.
    pub after_us: u64,
}

/// The blow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blow {
    /// It falls in this step …
    pub step: usize,
    /// … so long after the step was begun.
    pub after_us: u64,
    /// Who is killed.
    pub victims: Victims,
    /// Of both: whether the reaper goes first.
    pub reaper_first: bool,
    /// Of both: time between the two.
    pub gap_us: u64,
    /// Whether a runc that runs for the container is killed too, before the pair.
    pub runc: bool,
    /// How long containerd takes to run `delete` after the connection was lost.
    pub delete_after_ms: u64,
}

/// Of blows after the first, in most lives.
const MORE_MAX: u32 = 3;
/// In one life of so many hundred the pair loses …
const BURST_PERCENT: u32 = 4;
/// … so many more after the first: no number of deaths may cost a container.
pub const BURST: u32 = 29;

/// A life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What init does.
    pub script: Script,
    /// The code it exits with when it ends by itself; never 0, 137 or 255.
    pub code: u32,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// What is asked, in order.
    pub steps: Vec<Step>,
    /// When and how the pair dies.
    pub blow: Blow,
    /// The blows after that, where one lives on.
    pub more: Vec<Again>,
    /// Whether the same id lives again at once.
    pub again: bool,
}

impl Plan {
    /// Life `number` of `seed`.
    #[must_use]
    pub fn draw(seed: u64, number: u64, victims: Victims) -> Self {
        let mut rng = Rng::new(seed ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93));
        let script = match rng.weighted(&[40, 25, 20, 15]) {
            0 => Script::Sleeper,
            1 => Script::Timed(rng.below(300)),
            2 => Script::Chatter(1 + rng.below(400)),
            _ => Script::Litter(rng.below(200)),
        };
        // Not 0, which is also what nobody has set; not 137 and 255, which have another meaning.
        let code = 1 + rng.below(120);
        let mut steps = vec![Step::Bootstrap, Step::Create, Step::Start];
        let mut paused = false;
        for _ in 0..rng.below(6) {
            let step = match rng.weighted(&[30, 15, 10, 10, 10, 25, 5]) {
                0 => Step::Exec {
                    code: 1 + rng.below(120),
                    ms: rng.below(80),
                    wait: rng.percent(50),
                    how: Self::how(&mut rng, victims),
                },
                1 if paused => Step::Resume,
                1 => Step::Pause,
                2 => Step::Update,
                3 => Step::Stats,
                4 => Step::Pids,
                5 => Step::Idle(rng.below(60)),
                // What the shell does not heed.
                _ => Step::Kill(28),
            };
            // runc joins no frozen container.
            if paused && matches!(step, Step::Exec { .. }) {
                continue;
            }
            paused = (paused || step == Step::Pause) && step != Step::Resume;
            steps.push(step);
        }
        if rng.percent(70) {
            let signal = (script == Script::Sleeper || rng.percent(25)).then(|| rng.percent(50));
            if paused && signal != Some(true) {
                steps.push(Step::Resume);
            }
            match signal {
                Some(true) => steps.push(Step::Kill(9)),
                Some(false) => steps.push(Step::Kill(15)),
                None => {}
            }
            // Other scripts than the sleeper do not heed SIGTERM, and end by themselves.
            steps.extend([Step::Wait, Step::Delete, Step::Shutdown]);
        }
        let blow = Self::blow(&mut rng, &steps, victims);
        let more = if victims.one_lives_on() {
            Self::more(&mut rng, &blow, steps.len())
        } else {
            Vec::new()
        };
        Self {
            more,
            script,
            code,
            terminal: rng.percent(15),
            steps,
            blow,
            again: rng.percent(12),
        }
    }

    fn how(rng: &mut Rng, victims: Victims) -> How {
        if !victims.one_lives_on() {
            return How::Plain;
        }
        match rng.weighted(&[40, 30, 30]) {
            0 => How::Plain,
            1 => How::Terminal,
            _ => How::Stdin(rng.below(3000)),
        }
    }

    fn more(rng: &mut Rng, first: &Blow, steps: usize) -> Vec<Again> {
        let steps = u32::try_from(steps).unwrap_or(1);
        let burst = rng.percent(BURST_PERCENT);
        let blows = if burst {
            BURST
        } else {
            rng.below(MORE_MAX + 1)
        };
        let mut at: Vec<usize> = (0..blows)
            .map(|_| 1 + rng.below(steps - 1) as usize)
            .map(|step| step.max(first.step))
            .collect();
        at.sort_unstable();
        at.into_iter()
            .map(|step| {
                // One in three meets the one that is just taking over, in a burst most do.
                let spans: &[u32] = if burst {
                    &[500, 3_000, 10_000, 20_000]
                } else {
                    &[500, 3_000, 10_000, 20_000, 60_000, 200_000]
                };
                let span = rng.pick(spans).unwrap_or(1);
                Again {
                    step,
                    after_us: u64::from(rng.below(span)),
                }
            })
            .collect()
    }

    fn blow(rng: &mut Rng, steps: &[Step], victims: Victims) -> Blow {
        // `start` takes few milliseconds; a blow at its end would fall into Create.
        let all = u32::try_from(steps.len()).unwrap_or(1);
        // One of its kind while `start` works is a death of both.
        let step = if rng.percent(4) && !victims.one_lives_on() {
            0
        } else {
            1 + rng.below(all - 1) as usize
        };
        // Most windows are short: as many blows in the first 0.2 ms as in the first 200.
        let span = rng
            .pick(&[200, 3_000, 20_000, 60_000, 200_000])
            .unwrap_or(1);
        let span = if step == 0 { 8_000 } else { span };
        // Both at once, or one after the other was made good, or in the middle of that.
        let gap = rng.pick(&[0, 1_000, 5_000, 20_000, 100_000]).unwrap_or(0);
        let beside = rng.pick(&[1, 1, 60, 2_000, 20_000]).unwrap_or(1);
        let gap: u64 = gap + u64::from(rng.below(beside));
        Blow {
            step,
            after_us: u64::from(rng.below(span)),
            victims,
            reaper_first: rng.percent(50),
            gap_us: gap,
            runc: rng.percent(20),
            delete_after_ms: if rng.percent(70) {
                0
            } else {
                u64::from(rng.below(300))
            },
        }
    }

    /// The spec of the container.
    #[must_use]
    pub fn spec(&self) -> Spec {
        let code = self.code;
        let mut spec = Spec::sh(&self.script.shell(code));
        spec.own_pids = !matches!(self.script, Script::Litter(_));
        spec.terminal = self.terminal;
        spec
    }

    /// Its streams.
    #[must_use]
    pub fn stdio(&self) -> Stdio {
        Stdio::Output
    }

    /// What it prints when nobody stops it.
    #[must_use]
    pub fn words(&self) -> String {
        match self.script {
            Script::Chatter(lines) => {
                let lines: Vec<_> = (0..lines).map(|line| format!("line {line}\n")).collect();
                lines.concat()
            }
            Script::Sleeper | Script::Timed(_) | Script::Litter(_) => "ready\n".into(),
        }
    }

    /// Whether it ends without being killed.
    #[must_use]
    pub fn ends(&self) -> bool {
        self.script != Script::Sleeper
    }
}

impl Script {
    /// The line of shell.
    #[must_use]
    pub fn shell(self, code: u32) -> String {
        let seconds = |ms: u32| format!("{}.{:03}", ms / 1000, ms % 1000);
        match self {
            Self::Sleeper => format!(
                "trap 'exit {code}' TERM; echo ready; while :; do sleep 1000 & wait $!; done"
            ),
            Self::Timed(ms) => {
                format!(
                    "trap : TERM; echo ready; sleep {}; exit {code}",
                    seconds(ms)
                )
            }
            Self::Chatter(lines) => format!(
                "trap : TERM; i=0; while [ $i -lt {lines} ]; do echo line $i; i=$((i+1)); done; exit {code}"
            ),
            Self::Litter(ms) => format!(
                "trap : TERM; sleep 1000 & (sleep 1000 & sleep 1000) & echo ready; sleep {}; exit {code}",
                seconds(ms)
            ),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} exit {}{}; {:?}; {:?}; {:?}{}",
            self.script,
            self.code,
            if self.terminal { " on a terminal" } else { "" },
            self.steps,
            self.blow,
            self.more,
            if self.again { "; and again" } else { "" }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_lives_and_another_others() {
        let lives = |seed| -> Vec<Plan> {
            (0..50)
                .map(|n| Plan::draw(seed, n, Victims::Both))
                .collect()
        };
        assert_eq!(lives(1), lives(1));
        assert_ne!(lives(1), lives(2));
    }

    #[test]
    fn some_pairs_lose_thirty_at_a_stretch() {
        let bursts = |victims| {
            let plans = (0..2000).map(|n| Plan::draw(7, n, victims));
            plans.filter(|p| p.more.len() == BURST as usize).count()
        };
        for victims in [Victims::Shim, Victims::Reaper, Victims::Alternating] {
            assert!((40..160).contains(&bursts(victims)), "{victims:?}");
        }
        assert_eq!(bursts(Victims::Both), 0);
    }

    #[test]
    fn blows_fall_into_every_step() {
        let mut hit = std::collections::BTreeSet::new();
        for number in 0..2000 {
            let plan = Plan::draw(7, number, Victims::Both);
            let name = format!("{:?}", plan.steps[plan.blow.step]);
            let end = name.find([' ', '(']).unwrap_or(name.len());
            hit.insert(name[..end].to_owned());
            assert!(![0, 137, 255].contains(&plan.code));
        }
        assert_eq!(hit.len(), 14, "{hit:?}");
    }
}
