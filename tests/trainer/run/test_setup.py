"""What a run asks for before it begins."""

from trainer.run.setup import disk_need


def test_adapters_ask_for_little_room_on_the_disk() -> None:
    """Checkpoints hold what is trained alone: a 7 B model's LoRA needs the model's own room, and a little."""
    whole = disk_need(7 * 10**9, 7 * 10**9, keep=2)
    adapters = disk_need(7 * 10**9, 20 * 10**6, keep=2)

    assert whole == 4 * 7 * 10**9 * 13
    assert adapters < 30 * 10**9
