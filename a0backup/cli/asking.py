"""Ask the user for a secret."""

import getpass
import os

import click


def ask(what: str, option: str) -> str:
    """Ask for a secret at the terminal; it never comes from the arguments or from standard input.

    Raise UsageError, which names *option* as the alternative, if there is no terminal.
    """
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        raise click.UsageError(f"there is no terminal to ask for the {what} at; give it with {option}") from None
    answer = getpass.getpass(f"{what}: ")
    if not answer:
        raise click.UsageError(f"no {what} was given")
    return answer


def ask_twice(what: str, option: str, differ: str) -> str:
    """Ask for a new secret twice. Raise UsageError with *differ* if the answers differ."""
    answer = ask(what, option)
    if ask("the same again", option) != answer:
        raise click.UsageError(differ)
    return answer
