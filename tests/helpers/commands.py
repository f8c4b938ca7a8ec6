"""Command lines that are put together from parts."""


def overridden(words: list[str]) -> list[str]:
    """A command line in which of an option that is given several times only the last one stays."""
    options: dict[str, list[str]] = {}
    for index, word in enumerate(words):
        name = word.partition("=")[0] if word.startswith("--") else f"word {index}"
        if not word.startswith("--") and index and words[index - 1].startswith("--"):
            previous = words[index - 1]
            if "=" not in previous:
                options[previous].append(word)
                continue
        options.pop(name, None)
        options[name] = [word]
    return [word for option in options.values() for word in option]
