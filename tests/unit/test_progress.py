"""Progress: plain lines where there is no terminal, a bar where there is one."""

import io

from t5x_style.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_say_how_far_the_work_is():
    stream = io.StringIO()
    assert list(progress("abc", None, "reading", "files", every_secs=0, stream=stream)) == list(
        "abc"
    )
    lines = stream.getvalue().splitlines()
    assert lines[0] == "reading: 1 of 3 files, 0 s"
    assert lines[-1] == "reading: 3 of 3 files, 0 s"
    assert "\r" not in stream.getvalue()


def test_an_unknown_total_is_left_out_and_lines_are_few():
    stream = io.StringIO()
    assert sum(progress(iter(range(1000)), description="adding", stream=stream)) == 499500
    assert stream.getvalue() == "adding: 1000 items, 0 s\n"


def test_a_terminal_gets_a_bar():
    stream = Terminal()
    assert list(progress(range(3), description="baking", unit="loaves", stream=stream)) == [0, 1, 2]
    assert "baking: 100%" in stream.getvalue()
    assert "3/3" in stream.getvalue()
