"""Lines for people go to stderr, so that stdout holds results alone."""

from mmscale.messages import report, warn, write_line


def test_the_forms_of_a_line(capsys):
    report("interrupted")
    warn("one sample is broken")
    write_line(ValueError("as it is"))
    out, err = capsys.readouterr()
    assert not out
    assert err == "mmscale: interrupted\nmmscale: warning: one sample is broken\nas it is\n"
