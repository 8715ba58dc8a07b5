"""Short texts of many kinds, written for the tests."""

PROSE = (
    "The quick brown fox isn't lazy: it jumps 1,234 times (or 56.78 %) over the dog.\n"
    "Whereas some cannot, won't, or shouldn't; others—the rest—do it anyway…\n\n"
)
CODE = (
    "def area(r: float) -> float:\n    '''Returns pi*r**2.'''\n"
    "\treturn 3.14159 * r ** 2\n"
    "for (int i = 0; i < n; ++i) { a[i] += b[i] << 2; }  // done\r\n"
    "        if x != y and not (z or w):\n                print(f'{x:>10}')\n"
)
LANGUAGES = {
    "de": "Überall dort, wo Häuser größer als Straßen sind, fließt kein Öl.",
    "es": "¿Dónde está el niño? ¡Mañana comerá piñones y jamón!",
    "fr": "L'été où l'œuf a été mangé, la forêt s'est tue à jamais.",
    "it": "Perché così? Città e virtù: è già più di ciò che può.",
    "pt": "Não há maçãs nem pães à mão; amanhã virão os irmãos.",
    "ca": "L'alumna col·labora: això és una qüestió d'aigües i pingüins.",
    "nb": "Å være på øya når blåbærene er modne, er ærlig talt gøy.",
    "id": "Anak-anak itu sedang bermain layang-layang di tepi pantai.",
    "ru": "Съешь же ещё этих мягких французских булок да выпей чаю.",
    "ja": "吾輩は猫である。名前はまだ無い。ハードウェアとｶﾀｶﾅ。",
    "zh": "敏捷的棕色狐狸跳过了懒狗。数据、模型\uff0c以及“融合”。",
    "ar": "كان يا ما كان في قديم الزمانِ، سَلامٌ عليكم ١٢٣.",
    "fa": "می‌خواهم کتاب‌هایم را بخوانم؛ آیا می‌شود؟ ۴۵۶",
}
# from the second line on: what NFC or NFKC changes
EMOJI = (
    "👩\u200d👩\u200d👧\u200d👦 and 🏳\ufe0f\u200d🌈, 👍🏽 🇩🇪🇫🇷 😀😀😀 "
    "e\u0301 a\u0301\u0323 s\u0323\u0307 \u1100\u1161\u11a8 \uac01 "
    "\u212b \ufb01 \u00bd \ufdfa \U0001d518 q\u0308\u0323 \u0958"
)
CONTROL = (
    "a\x00b\x01\x02c\x07\x1b[31m\x7f\x85\u200b\u200e\ufeff\u2028"
    "\ud7ff\ue000\uffff\U0010ffff end"
)
SPACES = (
    f"x{' ' * 7}y{' ' * 70}\t\t\t  \n\n\n \n{' ' * 300}z \u00a0\u3000 \u2581 "
    "\u2581\u2581a\r\n\r\n"
)
STARTS = " leading space"

ALL = {
    "prose": PROSE,
    "code": CODE,
    "emoji": EMOJI,
    "control": CONTROL,
    "spaces": SPACES,
    "starts": STARTS,
    **LANGUAGES,
}
