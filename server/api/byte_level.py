"""The characters by which byte-level tokenizers, such as GPT-2's, write bytes."""


def _characters() -> dict[int, str]:
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {
        byte: chr(0x100 + index) for index, byte in enumerate(others)
    }


CHARACTER_OF_BYTE: dict[int, str] = _characters()
"""The character of each byte: its own if that is visible, else one from U+0100 on."""

BYTE_OF_CHARACTER: dict[str, int] = {letter: byte for byte, letter in CHARACTER_OF_BYTE.items()}
"""The byte that each of these characters stands for."""
