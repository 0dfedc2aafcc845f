import pytest

from jaxsgl.grammar.errors import GrammarError
from jaxsgl.interface import EbnfGrammar
from tests.grammar.toy import compiled, takes

LIST = r"""
# A list as llama.cpp's examples write it.
root  ::= item+
item  ::= "- " [^\r\n\x0b\x0c\x85\u2028\u2029]+ "\n"
"""
ARITHMETIC = r"""
root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t\n]*
"""
JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws (value ("," ws value)*)? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""
CHESS = r"""
root   ::= "1. " move " " move "\n" ([1-9] [0-9]? ". " move " " move "\n")+
move   ::= (pawn | nonpawn | castle) [+#]?
nonpawn ::= [NBKQR] [a-h]? [1-8]? "x"? [a-h] [1-8]
pawn   ::= ([a-h] "x")? [a-h] [1-8] ("=" [NBKQR])?
castle ::= "O-O" "-O"?
"""


@pytest.mark.parametrize(
    ("text", "accepted", "refused"),
    [
        (LIST, ["- a\n", "- milk\n- ünder\n"], ["", "-a\n", "- \n", "- a"]),
        (ARITHMETIC, ["a=1\n", "(a +1)*2 = x2 \n", "1=2\nb=3\n"], ["a=\n", "=1\n", "a=1"]),
        (JSON, ['{}', '{"a": [1, -2.5e3, true],"b":{}}', '{"\\u00e9": "é"}\n  '],
         ["[]", '{"a":}', '{"a":01}', "{'a':1}"]),
        (CHESS, ["1. e4 e5\n2. Nf3 Nc6\n", "1. exd5 O-O-O+\n10. a8=Q# Rab1\n"], ["1. e4\n"]),
        ('root ::= "a" | "ab" "c"?', ["a", "ab", "abc"], ["", "ac"]),
        ('root ::= "a"* "ab"', ["ab", "aab"], ["a", "b", "aa"]),
        ('root ::= "(" root ")" | [a-z]+ | "if" "x"?', ["if", "((a))", "ifx"], ["(a", "()"]),
        ('root ::= a a\na ::= "x" a? | "y"', ["xx", "xyy", "yxxy"], ["x", "y"]),
        ('root ::= .{2,3} [^a-c] "\\x41" "\\u00e9"', ["éézAé", "abczAé"], ["abcAé", "azAé"]),
        ('root ::= ("a" root){2} | "b"', ["b", "abab", "aababab"], ["ab", "ababab"]),
        ('root ::= ""', [""], ["a"]),
        ('root ::= [a-] [\\]^] "\\""', ['-]"', 'a^"'], ['b]"']),
    ],
)  # fmt: skip
def test_table(text, accepted, refused):
    grammar = compiled(EbnfGrammar(text))
    assert [sample for sample in accepted if not takes(grammar, sample)] == []
    assert [sample for sample in refused if takes(grammar, sample)] == []


def test_another_start():
    assert takes(compiled(EbnfGrammar('a ::= "x"\nb ::= a a', start="b")), "xx")


@pytest.mark.parametrize(
    ("text", "complaint", "line"),
    [
        ('root ::= "a" b', "rule b is used but not defined", 1),
        ('root ::= "a"\nroot ::= "b"', "rule root is defined twice", 2),
        ('root ::= "a"\nx ::= "b" %', "cannot read '%'", 2),
        ('root ::= ("a"', "a parenthesis is not closed", 1),
        ('root ::= "a")', "unexpected ')' in rule root", 1),
        ('root ::= "a"{5,2}', "bad repetition {5,2}", 1),
        ('root ::= "a"{100000}', "bad repetition", 1),
        ("root ::= []", "an empty character set", 1),
        ('start ::= "a"', "no rule named 'root'", None),
        ("", "a grammar begins with", 1),
        ('"a"', "a grammar begins with", 1),
        ("root ::= * ", "unexpected '*'", 1),
        ("root ::= root", "matches no text", None),
        ("root ::= " + "(" * 5000 + '"a"' + ")" * 5000, "too deeply nested", 1),
    ],
)
def test_refused(text, complaint, line):
    with pytest.raises(GrammarError) as error:
        compiled(EbnfGrammar(text))
    assert complaint in str(error.value)
    assert error.value.line == line
