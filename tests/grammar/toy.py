"""A vocabulary small enough to try every token, and grammars to try it on."""

from __future__ import annotations

from functools import cache

import numpy as np
from lark import Lark

from jaxsgl.grammar.compiled import CompiledGrammar, GrammarMemory, TableGrammar
from jaxsgl.grammar.compiler import compile_tables
from jaxsgl.grammar.limits import DEFAULT_LIMITS
from jaxsgl.grammar.matcher import Matcher
from jaxsgl.grammar.vocabulary import Vocabulary
from jaxsgl.interface import GrammarSpec, LarkGrammar

EOS = 0
_WORDS = """
true false null ": ," , "} }, "}, [] {} {" [" "" ]] }} \\" \\n 10 0. .. 1.5 e+ aa ab ba aba bb abab
if else while iff in == = + ** ( ) () ); x1 foo foo( bar, SELECT select FROM from a, a.b 'x' =1
''' \"\"\" /* */ // -- #c 1..2 0x 00 01 12 2. é ü 日本 😀 é" \\u00 null, true} x: y= z;
""".split()
_SPACED = [
    " ",
    "  ",
    "\n",
    "\n  ",
    "\t",
    " a",
    " if",
    ' "',
    ", ",
    ": ",
    " = ",
    '": "',
    '", "',
    " AND ",
]


@cache
def toy_vocabulary() -> Vocabulary:
    """All bytes and some longer tokens; two tokens are spelled alike, one has no bytes."""
    texts = [b"", *(bytes([byte]) for byte in range(256))]
    texts += [text.encode() for text in (*_WORDS, *_SPACED)]
    texts += ["é".encode()[:1] + b"x", "日本".encode()[1:4], b"", b"true"]
    return Vocabulary(texts, (EOS,), len(texts) + 7)


def compiled(spec: GrammarSpec, max_bytes: int = 64 << 20) -> TableGrammar:
    memory = GrammarMemory(toy_vocabulary(), max_bytes)
    return TableGrammar(compile_tables(spec), memory, DEFAULT_LIMITS)


def mask_of(matcher: Matcher) -> np.ndarray:
    """The tokens that may come next."""
    row = np.full(toy_vocabulary().row_len, 0xFFFFFFFF, dtype=np.uint32)
    matcher.fill_mask(row)
    return toy_vocabulary().tokens_in(row)


def byte_token(byte: int) -> int:
    return byte + 1


def takes(grammar: CompiledGrammar, text: str | bytes) -> bool:
    """Whether a whole text is accepted, byte by byte."""
    matcher = grammar.matcher()
    data = text.encode() if isinstance(text, str) else text
    return all(matcher.advance(byte_token(byte)) for byte in data) and matcher.can_end


def lark_takes(parser: Lark, text: str) -> bool:
    try:
        parser.parse(text)
    except Exception as error:
        if type(error).__module__ != "lark.exceptions":
            raise
        return False
    return True


JSON = r"""
?start: value
?value: object | array | STRING | NUMBER | "true" | "false" | "null"
array: "[" [value ("," value)*] "]"
object: "{" [pair ("," pair)*] "}"
pair: STRING ":" value
STRING: /"([^"\\\x00-\x1f]|\\(["\\\/bfnrt]|u[0-9a-fA-F]{4}))*"/
NUMBER: /-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/
%ignore /[ \t\n\r]+/
"""

LARK_JSON = r"""
?start: value
?value: object | array | string | SIGNED_NUMBER -> number | "true" -> true | "false" -> false
      | "null" -> null
array: "[" [value ("," value)*] "]"
object: "{" [pair ("," pair)*] "}"
pair: string ":" value
string: ESCAPED_STRING
%import common.ESCAPED_STRING
%import common.SIGNED_NUMBER
%import common.WS
%ignore WS
"""

SQL = r"""
start: select ";"?
select: "SELECT"i distinct? columns "FROM"i table ("," table)* join* where? group? order? limit?
distinct: "DISTINCT"i
columns: "*" | column ("," column)*
column: expr ["AS"i NAME]
table: NAME ["AS"i NAME] | "(" select ")" "AS"i NAME
join: ("LEFT"i | "INNER"i)? "JOIN"i table "ON"i expr
where: "WHERE"i expr
group: "GROUP"i "BY"i expr ("," expr)*
order: "ORDER"i "BY"i expr ("ASC"i | "DESC"i)?
limit: "LIMIT"i INT
?expr: conj ("OR"i conj)*
?conj: cond ("AND"i cond)*
?cond: "NOT"i cond | sum (COMPARE sum)? | sum "IN"i "(" expr ("," expr)* ")" | sum "IS"i "NULL"i
?sum: product (("+" | "-") product)*
?product: atom (("*" | "/") atom)*
?atom: NAME ("." NAME)? | call | NUMBER | INT | TEXT | "(" expr ")" | "NULL"i
call: NAME "(" (expr ("," expr)*)? ")"
COMPARE: "=" | "<>" | "<=" | ">=" | "<" | ">"
NAME: /[a-zA-Z_][a-zA-Z0-9_]*/
NUMBER: /[0-9]+\.[0-9]+/
INT: /[0-9]+/
TEXT: /'([^'\n]|'')*'/
COMMENT: /--[^\n]*/
%ignore COMMENT
%ignore /[ \t\n]+/
"""

PYTHON_EXPRESSION = "%import python (testlist, NAME)\nstart: testlist\n%ignore / +/\n"

CALCULATOR = r"""
?start: sum | NAME "=" sum -> assign
?sum: product | sum "+" product -> add | sum "-" product -> sub
?product: atom | product "*" atom -> mul | product "/" atom -> div
?atom: NUMBER -> number | "-" atom -> neg | NAME -> var | "(" sum ")"
%import common.CNAME -> NAME
%import common.NUMBER
%import common.WS_INLINE
%ignore WS_INLINE
"""

TURTLE = r"""
start: instruction+
instruction: MOVEMENT NUMBER -> movement | "c" COLOR [COLOR] -> change_color
           | "fill" code_block -> fill | "repeat" NUMBER code_block -> repeat
code_block: "{" instruction+ "}"
MOVEMENT: "f" | "b" | "l" | "r"
COLOR: LETTER+
%import common.LETTER
%import common.INT -> NUMBER
%import common.WS
%ignore WS
"""

TEMPLATES = r"""
start: list{NAME, ","} ";" list{number, "|"}
list{item, sep}: item (sep item)*
number: INT | FLOAT
NAME.2: /[a-z]+/
FLOAT.2: /\d+\.\d+/
INT: /\d+/
%ignore " "
"""

SAMPLES = {
    "json": JSON,
    "lark_json": LARK_JSON,
    "sql": SQL,
    "python_expression": PYTHON_EXPRESSION,
    "calculator": CALCULATOR,
    "turtle": TURTLE,
    "templates": TEMPLATES,
}


def slow_grammar(num_rules: int = 2000) -> str:
    """A minute of work for an LALR generator."""

    def rule(number: int) -> str:
        return f"a{number % num_rules}"

    pairs = " | ".join(f"{rule(n)} {rule(n * 7 + 1)} x" for n in range(num_rules))
    rules = (
        f'{rule(n)}: ("k{n}" | {rule(n * 3 + 1)} "+" {rule(n + 5)})*' for n in range(num_rules)
    )
    return "\n".join([f"start: {pairs}", "x: /z/", *rules])


def lark_spec(text: str) -> LarkGrammar:
    return LarkGrammar(text)
