"""A run that hangs is told, once; one that is slow is not."""

from trainer.supervisor.silence import LEAST, SilenceNotice

PIDS = (11, 12)


def step(seconds: float) -> dict[str, object]:
    return {"type": "step", "record": {"seconds": seconds}}


def test_a_long_silence_after_a_step_is_told_once() -> None:
    """With the processes to look at, and again only after another step."""
    silence = SilenceNotice()
    silence.hear(step(0.5), 100.0)

    early = silence.notice(100.0 + LEAST - 1, PIDS)
    told = silence.notice(100.0 + LEAST, PIDS)
    again = silence.notice(100.0 + 5 * LEAST, PIDS)
    silence.hear(step(0.5), 5000.0)
    later = silence.notice(5000.0 + LEAST, PIDS)

    assert early is None
    assert told is not None
    assert "nothing was heard for 10 minutes, and the slowest step took 0.5 s" in told
    assert "`py-spy dump --pid N` shows where a process is (11, 12)" in told
    assert again is None
    assert later is not None


def test_slow_steps_are_given_their_time() -> None:
    """Twenty times the slowest so far."""
    silence = SilenceNotice()
    silence.hear(step(60.0), 0.0)
    silence.hear(step(1.0), 1.0)

    assert silence.notice(1199.0, PIDS) is None
    assert silence.notice(1201.0, PIDS) is not None


def test_any_word_breaks_the_silence() -> None:
    """An evaluation and a checkpoint say something too."""
    silence = SilenceNotice()
    silence.hear(step(1.0), 0.0)
    silence.hear({"type": "checkpoint"}, LEAST - 1)

    assert silence.notice(LEAST + 1, PIDS) is None


def test_before_the_first_step_nothing_is_said() -> None:
    """A run may tokenise for hours, or wait for the user's answer."""
    silence = SilenceNotice()
    silence.hear({"type": "built"}, 0.0)

    assert silence.notice(100 * LEAST, PIDS) is None
