"""Parallel text in its further forms: datasets, parquet, compressed files, nested fields."""

import bz2
import gzip
import io
import json
import lzma
import sys
from pathlib import Path

import pytest

from lens.data.corpora import read_found, read_parallel
from lens.data.languages import canonical, is_language
from lens.errors import InputError, MissingExtraError

ROWS = {"en": ["one", "two", "three"], "sw": ["moja", "mbili", "tatu"]}
READ = {"eng_Latn": ROWS["en"], "swh_Latn": ROWS["sw"]}
# Every code of FLORES-200, as its authors write them.
FLORES = """
ace_Arab ace_Latn acm_Arab acq_Arab aeb_Arab afr_Latn ajp_Arab aka_Latn als_Latn amh_Ethi apc_Arab
arb_Arab arb_Latn ars_Arab ary_Arab arz_Arab asm_Beng ast_Latn awa_Deva ayr_Latn azb_Arab azj_Latn
bak_Cyrl bam_Latn ban_Latn bel_Cyrl bem_Latn ben_Beng bho_Deva bjn_Arab bjn_Latn bod_Tibt bos_Latn
bug_Latn bul_Cyrl cat_Latn ceb_Latn ces_Latn cjk_Latn ckb_Arab crh_Latn cym_Latn dan_Latn deu_Latn
dik_Latn dyu_Latn dzo_Tibt ell_Grek eng_Latn epo_Latn est_Latn eus_Latn ewe_Latn fao_Latn fij_Latn
fin_Latn fon_Latn fra_Latn fur_Latn fuv_Latn gaz_Latn gla_Latn gle_Latn glg_Latn grn_Latn guj_Gujr
hat_Latn hau_Latn heb_Hebr hin_Deva hne_Deva hrv_Latn hun_Latn hye_Armn ibo_Latn ilo_Latn ind_Latn
isl_Latn ita_Latn jav_Latn jpn_Jpan kab_Latn kac_Latn kam_Latn kan_Knda kas_Arab kas_Deva kat_Geor
kaz_Cyrl kbp_Latn kea_Latn khk_Cyrl khm_Khmr kik_Latn kin_Latn kir_Cyrl kmb_Latn kmr_Latn knc_Arab
knc_Latn kon_Latn kor_Hang lao_Laoo lij_Latn lim_Latn lin_Latn lit_Latn lmo_Latn ltg_Latn ltz_Latn
lua_Latn lug_Latn luo_Latn lus_Latn lvs_Latn mag_Deva mai_Deva mal_Mlym mar_Deva min_Arab min_Latn
mkd_Cyrl mlt_Latn mni_Beng mos_Latn mri_Latn mya_Mymr nld_Latn nno_Latn nob_Latn npi_Deva nso_Latn
nus_Latn nya_Latn oci_Latn ory_Orya pag_Latn pan_Guru pap_Latn pbt_Arab pes_Arab plt_Latn pol_Latn
por_Latn prs_Arab quy_Latn ron_Latn run_Latn rus_Cyrl sag_Latn san_Deva sat_Olck scn_Latn shn_Mymr
sin_Sinh slk_Latn slv_Latn smo_Latn sna_Latn snd_Arab som_Latn sot_Latn spa_Latn srd_Latn srp_Cyrl
ssw_Latn sun_Latn swe_Latn swh_Latn szl_Latn tam_Taml taq_Latn taq_Tfng tat_Cyrl tel_Telu tgk_Cyrl
tgl_Latn tha_Thai tir_Ethi tpi_Latn tsn_Latn tso_Latn tuk_Latn tum_Latn tur_Latn twi_Latn tzm_Tfng
uig_Arab ukr_Cyrl umb_Latn urd_Arab uzn_Latn vec_Latn vie_Latn war_Latn wol_Latn xho_Latn ydd_Hebr
yor_Latn yue_Hant zho_Hans zho_Hant zsm_Latn zul_Latn
""".split()


def problems(source: object, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        read_parallel(source, **options)
    return str(caught.value)


# ---------------------------------------------------------------- codes


def test_every_flores_code_is_itself():
    assert len(FLORES) == 204
    assert [code for code in FLORES if canonical(code) != code] == []
    # Where FLORES writes a language in one script only, its letters alone mean the same.
    once = [c for c in FLORES if sum(o.startswith(c[:4]) for o in FLORES) == 1]
    assert [code for code in once if canonical(code[:3]) != code] == []


@pytest.mark.parametrize(
    ("typed", "code"),
    [
        ("pt_BR", "por_Latn"),
        ("pt_BR.UTF-8", "por_Latn"),
        ("ZH-HANS", "zho_Hans"),
        ("zh_tw", "zho_Hant"),
        ("ENG_LATN", "eng_Latn"),
        ("kiswahili", "swh_Latn"),
        ("ko", "kor_Hang"),
        ("ko-Kore", "kor_Hang"),
        ("prs", "prs_Arab"),
        ("sr-Latn", "srp_Latn"),
        ("iw", "heb_Hebr"),
    ],
)
def test_spellings_of_systems_and_registries(typed, code):
    assert canonical(typed) == code
    assert canonical(code) == code


def test_what_is_no_language():
    assert not any(map(is_language, ("a", "x", "train", "data", "en.text", "hidden_states")))


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("ending", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress)]
)
def test_every_text_form_may_be_compressed(tmp_path, ending, pack):
    both = zip(*ROWS.values(), strict=True)
    lines = "\n".join(json.dumps({"en": e, "sw": s}) for e, s in both)
    contents = {
        "rows.jsonl": lines,
        "rows.json": json.dumps(ROWS),
        "rows.tsv": "en\tsw\n" + "\n".join(map("\t".join, zip(*ROWS.values(), strict=True))),
    }
    for name, content in contents.items():
        file = tmp_path / f"{name}{ending}"
        file.write_bytes(pack(content.encode()))
        assert read_parallel(file).rows == READ
    (tmp_path / "each").mkdir()
    for code, rows in ROWS.items():
        (tmp_path / "each" / f"{code}.txt{ending}").write_bytes(pack("\n".join(rows).encode()))
    assert read_parallel(tmp_path / "each").rows == READ


@pytest.mark.parametrize(
    ("ending", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress)]
)
@pytest.mark.parametrize("kept", [0.5, 0.98])
def test_a_truncated_file_is_told(tmp_path, ending, pack, kept):
    content = pack(json.dumps({"en": [str(i) for i in range(4000)]}).encode())
    file = tmp_path / f"rows.json{ending}"
    file.write_bytes(content[: int(len(content) * kept)])
    assert f"rows.json{ending}: cannot be decompressed" in problems(file)


def test_zstandard_or_what_to_install(tmp_path):
    file = tmp_path / "rows.json.zst"
    try:
        from backports import zstd
    except ImportError:
        file.write_bytes(b"\x28\xb5\x2f\xfd")
        if sys.version_info < (3, 14):
            with pytest.raises(MissingExtraError, match=r"lens-lm\[zstd\]"):
                read_parallel(file)
        return
    file.write_bytes(zstd.compress(json.dumps(ROWS).encode()))
    assert read_parallel(file).rows == READ
    file.write_bytes(file.read_bytes()[:-4])
    assert "cannot be decompressed" in problems(file)


def test_one_jsonl_per_language(tmp_path):
    for code, rows in ROWS.items():
        lines = [json.dumps({"text": row, "id": i}) for i, row in enumerate(rows)]
        (tmp_path / f"{code}.jsonl").write_text("\n".join(lines))
    assert read_parallel(tmp_path).rows == READ
    assert "text under 'prompt'" in problems(tmp_path, column="prompt")


def test_fields_of_a_language(tmp_path):
    both = zip(*ROWS.values(), strict=True)
    nested = [{"item": 1, "en": {"q": e, "a": "x"}, "sw": {"q": s, "a": "y"}} for e, s in both]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, nested)))
    assert read_parallel(file, column="q").rows == READ
    assert "en holds objects, not text; choose one of their fields with column=" in problems(file)
    assert "q, a" in problems(file)
    assert "no language has text under column 'z'" in problems(file, column="z")
    flat = [{"sentence_eng_Latn": r["en"]["q"], "sentence_swh_Latn": r["sw"]["q"]} for r in nested]
    file.write_text("\n".join(map(json.dumps, flat)))
    assert read_parallel(file).rows == READ
    pairs = [{"translation": {"en": r["en"]["q"], "sw": r["sw"]["q"]}} for r in nested]
    file.write_text("\n".join(map(json.dumps, pairs)))
    assert read_parallel(file).rows == READ
    long = [{"lang": code, "text": row} for code, rows in ROWS.items() for row in rows]
    file.write_text("\n".join(map(json.dumps, long)))
    assert "one row per language" in problems(file)


def test_two_spellings_matter_only_where_they_are_asked_for(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(ROWS | {"pt": ["a"] * 3, "pt_BR": ["b"] * 3}))
    assert "duplicate language por_Latn" in problems(file)
    assert read_parallel(file, languages=["en", "sw"]).rows == READ


def test_incomplete_rows_can_be_dropped(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps({"en": ["a", "b", "c", "d"], "sw": ["e", "", "g", " "]}))
    text = problems(file)
    assert "swh_Latn: 2 empty row(s): 2, 4" in text and "--missing-rows drop" in text
    corpus = read_parallel(file, missing_rows="drop")
    assert corpus.rows == {"eng_Latn": ["a", "c"], "swh_Latn": ["e", "g"]}
    assert corpus.dropped == 2
    one = read_parallel(file, missing_rows="drop", limit=1, min_rows=1)
    assert one.rows["eng_Latn"] == ["a"] and one.dropped == 0
    assert "missing_rows is 'skip'" in problems(file, missing_rows="skip")


def test_rows_in_memory():
    assert read_parallel(ROWS).rows == READ
    assert "'Gibberish'" in problems({"en": ["a", "b"], "Gibberish": ["c", "d"]})
    assert "expected a list of strings" in problems({"en": ["a", 1]})
    assert "data is int" in problems(3)


def test_a_file_that_cannot_be_read_is_one_problem(tmp_path):
    (tmp_path / "en.txt").mkdir()
    (tmp_path / "sw.txt").write_text("moja\nmbili\n")
    assert read_found(tmp_path).rows == {"swh_Latn": ["moja", "mbili"]}


# ---------------------------------------------------------------- Hugging Face datasets


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets")


def test_datasets_in_memory_saved_and_as_parquet(datasets, tmp_path):
    table = datasets.Dataset.from_dict({**ROWS, "row": [1, 2, 3], "doc": ["x", "y", "z"]})
    assert read_parallel(table).rows == READ
    table.save_to_disk(str(tmp_path / "saved"))
    assert read_parallel(tmp_path / "saved").rows == READ
    table.to_parquet(str(tmp_path / "rows.parquet"))
    assert read_parallel(tmp_path / "rows.parquet", languages=["sw"]).rows == {
        "swh_Latn": ROWS["sw"]
    }
    parts = tmp_path / "repository" / "data"
    parts.mkdir(parents=True)
    for i in range(2):
        part = table.shard(2, i, contiguous=True)
        part.to_parquet(str(parts / f"train-0000{i}-of-00002.parquet"))
    assert read_parallel(tmp_path / "repository").rows == READ
    assert "no split 'test'; the data has: train" in problems(tmp_path / "repository", split="test")


def test_splits(datasets, tmp_path):
    whole = datasets.Dataset.from_dict(ROWS)
    both = datasets.DatasetDict({"train": whole, "test": whole.select([0, 1])})
    assert "choose one with split= (--split): train, test" in problems(both)
    assert read_parallel(both, split="test").rows["swh_Latn"] == ["moja", "mbili"]
    both.save_to_disk(str(tmp_path / "saved"))
    assert read_parallel(tmp_path / "saved", split="train").rows == READ
    assert "no split 'dev'; the data has: train, test" in problems(both, split="dev")
    by_language = datasets.DatasetDict(
        {c: datasets.Dataset.from_dict({"text": r, "topic": r}) for c, r in ROWS.items()}
    )
    assert read_parallel(by_language).rows == READ
    assert "choose its column of text" in problems(by_language, column="body")


def test_translations_and_missing_cells(datasets):
    both = zip(*ROWS.values(), strict=True)
    pairs = datasets.Dataset.from_list([{"translation": {"en": e, "sw": s}} for e, s in both])
    assert read_parallel(pairs).rows == READ
    holes = datasets.Dataset.from_dict({"en": ["a", "b", None], "sw": ["c", "d", "e"]})
    assert "eng_Latn: 1 empty row(s): 3" in problems(holes)
    assert read_parallel(holes, missing_rows="drop").rows["swh_Latn"] == ["c", "d"]


def test_damaged_and_streamed_datasets(datasets, tmp_path):
    table = datasets.Dataset.from_dict(ROWS)
    assert "has no number of rows" in problems(table.to_iterable_dataset())
    table.save_to_disk(str(tmp_path / "saved"))
    [arrow] = (tmp_path / "saved").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:40])
    assert "cannot be read as a saved dataset" in problems(tmp_path / "saved")
    packed = io.BytesIO()
    table.to_parquet(packed)
    (tmp_path / "rows.parquet").write_bytes(packed.getvalue()[:-20])
    assert "cannot be read as parquet" in problems(tmp_path / "rows.parquet")
    (tmp_path / "empty.parquet").write_bytes(b"")
    assert "cannot be read as parquet" in problems(tmp_path / "empty.parquet")


@pytest.mark.parametrize("name", ["datasets", "pyarrow.parquet"])
def test_what_to_install(monkeypatch, tmp_path, name):
    monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    place = tmp_path if name == "datasets" else Path(tmp_path / "rows.parquet")
    place.touch()
    with pytest.raises(MissingExtraError, match=r"lens-lm\[datasets\]"):
        read_parallel(place)
