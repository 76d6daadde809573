"""The languages of the sample world, the pivot first."""

PIVOT = "eng_Latn"
OTHERS = ("spa_Latn", "ind_Latn", "swh_Latn", "tur_Latn", "rus_Cyrl", "zho_Hans")
LANGUAGES = (PIVOT, *OTHERS)

# Written Chinese puts no spaces between words (only round names and numbers in Latin script).
UNSPACED = frozenset({"zho_Hans"})


def check_language(code: str) -> str:
    """Return ``code`` in FLORES spelling when the sample world speaks it.

    Parameters
    ----------
    code : str
        A FLORES code such as ``"swh_Latn"``, or any spelling that
        `lens.data.languages.canonical` knows.

    Returns
    -------
    str
        The FLORES code.

    Raises
    ------
    InputError
        The sample world has no text in that language.
    """
    from lens.errors import InputError

    if code in LANGUAGES:
        return code
    from lens.data.languages import canonical

    found = canonical(code)
    if found not in LANGUAGES:
        raise InputError(
            f"the sample world has no text in '{code}' ({found}); "
            f"it speaks {', '.join(LANGUAGES)}: choose one of these"
        )
    return str(found)
