"""Files that a user may have: right ones, the same with something wrong, and any bytes."""

import gzip
import json

from hypothesis import strategies as st
from traces import make_record

from sd_fairseq.decision.trace import to_json_line

SCRAPS = [
    *(b"\n", b"\r\n", b"\r", b"\t", b",", b'"', b'""', b" ", b"\0", b"\xef\xbb\xbf", b"\xff", b"\xc3", b"\xed\xa0\x80"),
    *(b"{", b"}", b"[", b"]", b":", b"\\", b"\\ud800", b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-1", b"0"),
    *(b"9" * 30, b"9" * 5000, b"[" * 3000, "²".encode(), "٣".encode(), "\u2028".encode(), "\x85".encode(), b"<unk>"),
    *(b"S-0\t", b"T-1\t", b"D-0\t", b"P-0\t", b"D-", b'{"id": 0}', b"#fairseq:overwrite", b"a" * 140000),
]
TEXT = st.text(max_size=12)
NAMES = ["id", "index", "sentence", "label", "data", "paragraphs", "qas", "context", "question", "answers", "text"]
NAMES += ["answer_start", "is_impossible", "document", "columns", "labels", "label_column", "bpe", "beam"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | TEXT, inner, max_size=4),
    max_leaves=12,
)


def lines_of(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


ANSWER = {"id": "7", "question": "What?", "answers": [{"text": "sea", "answer_start": 4}]}
NO_ANSWER = {**ANSWER, "id": "8", "is_impossible": True, "answers": []}
PARAGRAPH = {"context": "The sea is blue.", "qas": [ANSWER, NO_ANSWER]}
ROWS = [("id", "sentence", "label"), ("a", "it is fine", "1"), ("b", "it is not", "0")]
PREPARED = {"columns": ["sentence"], "labels": ["0", "1"], "label_column": "label", "bpe": "gpt2"}
RIGHT = {  # one right file of each kind
    "jsonl": lines_of(*(dict(zip(ROWS[0], row)) for row in ROWS[1:])),
    "tsv": b"".join("\t".join(row).encode() + b"\n" for row in ROWS),
    "csv": b'id,sentence,label\na,"it, ""is""\nfine",1\nb,it is not,0\n',
    "squad": json.dumps({"version": "2.0", "data": [{"title": "t", "paragraphs": [PARAGRAPH]}]}).encode(),
    "squad.jsonl": lines_of({**ANSWER, "context": PARAGRAPH["context"]}),
    "predictions": json.dumps({"7": "the sea", "8": ""}).encode(),
    "trace": "".join(to_json_line(make_record(number)) + "\n" for number in range(2)).encode(),
    "generation": b"".join(
        b"S-%d\ta b\nT-%d\tc d\nH-%d\t-0.1\tc d\nD-%d\t-0.1\tc d\nP-%d\t-0.1 -0.2\n" % ((n,) * 5) for n in range(2)
    ),
    "texts": b"the cat .\n\na dog <unk> .\n",
    "pairs": lines_of({"document": "a b", "summary": "a", "domain": "x"}, {"document": "c", "summary": "d"}),
    "dictionary": b"the 12\ncat 3\n<<unk>> 2\nmadeupword0000 0\n",
    "prepared": json.dumps(PREPARED).encode(),
}


@st.composite
def damaged(draw, right):
    """A right file with up to four things wrong."""
    content = right
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(content)))
        end = min(len(content), place + draw(st.sampled_from([0, 1, 2, 7, 40])))
        kind = draw(st.sampled_from(["cut", "take", "put", "swap", "again", "byte"]))
        if kind == "cut":
            content = content[:place]
        elif kind == "take":
            content = content[:place] + content[end:]
        elif kind == "put":
            content = content[:place] + draw(st.sampled_from(SCRAPS)) + content[place:]
        elif kind == "swap":
            content = content[:place] + draw(st.sampled_from(SCRAPS)) + content[end:]
        elif kind == "again":
            content = content + content[place:end]
        else:
            content = content[:place] + draw(st.binary(min_size=1, max_size=3)) + content[place + 1 :]
    return content


def damage(content, generator):
    """The same with one to three things wrong; many of these are made of each file that is drawn, which takes longer.

    Args:
        content: of a file.
        generator: random numbers.
    """
    for _ in range(generator.randint(1, 3)):
        place = generator.randrange(len(content) + 1)
        end = min(len(content), place + generator.choice((0, 1, 2, 7, 40)))
        kind = generator.randrange(5)
        if kind == 0:
            content = content[:place]
        elif kind == 1:
            content = content[:place] + content[end:]
        elif kind == 2:
            content = content[:place] + generator.choice(SCRAPS) + content[end:]
        elif kind == 3:
            content = content[:end] + content[place:]
        else:
            content = content[:place] + bytes([generator.randrange(256)]) + content[place + 1 :]
    return content


def broken(kind):
    """Any bytes, any JSON, and mostly right files of a kind with something wrong."""
    values = JSON.map(lambda value: json.dumps(value).encode())
    many = st.lists(values, max_size=3).map(b"\n".join)
    return st.one_of(damaged(RIGHT[kind]), damaged(RIGHT[kind]), damaged(RIGHT[kind]), st.binary(max_size=60), many)


def compressed(contents):
    """The same, compressed; or the compressed file damaged."""
    right = contents.map(lambda content: gzip.compress(content, 1, mtime=0))
    return st.one_of(right, right.flatmap(damaged), contents)
