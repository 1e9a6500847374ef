"Strips: every script, wrapped by width, pictures as the score sees them."
import io, json, unicodedata, warnings

import numpy as np, pytest
from PIL import Image, ImageDraw

from arldm.data import strips as show

BOX = chr(0x10fffe) # a letter that no font has

def blue(n=1): return [Image.new('RGB', (64, 64), (150, 205, 240)) for _ in range(n)]

def foot(strip, column=0, side=104): # the caption below a frame, as grey levels
    return np.asarray(strip.convert('L'))[6 + side + 4:, 6 + column*(side + 6):6 + (column + 1)*(side + 6)]

def drawn(caption): # its pixels, at the left end
    strip = show.strips([blue()], [caption])
    return foot(strip)

@pytest.mark.parametrize('text', ['ï', 'é', '–', '½', 'Ж', 'ω', 'א', '…', 'ş', 'ا'])
def test_letters_are_no_boxes(text):
    "Each differs from what is drawn for a letter that does not exist."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        strip = show.strips([blue(2)], [text, BOX])
    a, b = foot(strip), foot(strip, 1)
    assert (a < 200).any() and not np.array_equal(a[:, :104], b[:, :104])
    columns = np.flatnonzero((b < 200).any(0))                       # the box, moved to the other side for א
    box = b[:, columns[0]:columns[-1] + 1]
    mine = a[:, np.flatnonzero((a < 200).any(0))[0]:][:, :box.shape[1]]
    assert mine.shape != box.shape or not np.array_equal(mine, box)

def test_composed_and_combining_letters_look_alike():
    assert np.array_equal(drawn('cafe\u0301 noir'), drawn('caf\u00e9 noir'))

def test_no_caption_leaves_its_column():
    "Long words, many words and words without spaces are no wider than their frame."
    side = 60
    for caption in 'W'*30, 'MMMMM MMMMMMMM MMMM', 'Ж'*40, 'ωωωωω '*5:
        strip = np.asarray(show.strips([blue(2)], ['', caption], side=side).convert('L'))
        below = strip[6 + side + 4:]
        assert (below < 200).any()
        assert not (below[:, 6 + 2*side + 6 + 2:] < 200).any(), caption          # nothing right of the last column
        assert not (below[:, :6 + side + 4] < 200).any(), caption                # nor left of it

def test_the_whole_caption_is_there():
    from arldm.data.fonts import Lettering
    for caption in ('a wonderfully long caption', '星が、跳ねる。「高く」!', 'ab'*50, 'שלום עולם יפה', 'x'):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            lines = Lettering([caption]).wrap(caption, 40)
        assert ''.join(lines).replace(' ', '') == caption.replace(' ', '')
        assert not any(line[0] in '、。」' or line[-1] == '「' for line in lines)

def test_right_to_left_as_raqm_has_it(monkeypatch):
    "Without Raqm the letters of a Hebrew line stand where Raqm puts them; lines end at the right."
    from arldm.data import fonts as text
    if not text.SHAPED: pytest.skip('Pillow was built without Raqm')
    turned = {'שלום עולם': 'םלוע םולש', 'הכוכב קופץ 12 פעמים': 'םימעפ 12 ץפוק בכוכה', 'abc שלום עולם def': 'abc םלוע םולש def',
              'שלום (abc)': '(abc) םולש'}                               # by hand, as Unicode's annex 9 orders them
    assert {c: text.visual_order(c) for c in turned} == turned
    one = [np.asarray(show.strips([blue()], [c], side=190).convert('L')) for c in turned]
    monkeypatch.setattr(text, 'SHAPED', False)
    two = [np.asarray(show.strips([blue()], [c], side=190).convert('L')) for c in turned]
    for a, b, caption in zip(one, two, turned): assert abs(a.astype(int) - b).mean() < 1, caption   # but for kerning
    ink = np.flatnonzero((one[0][200:] < 200).any(0))
    assert ink[-1] > 180 and ink[0] > 100

MIXED = {'שלום ילדים Peter Pan בא': (['שלום ילדים', '\u200fPeter Pan בא'], ['םידלי םולש', 'אב Peter Pan']),
         'שלום לילדים 123 (4)': (['שלום לילדים', '\u200f123 (4)'], ['םידליל םולש', '(4) 123']),
         'Peter says שלום עולם hello': (['Peter says', '\u200eשלום עולם', 'hello'], ['Peter says', 'םלוע םולש', 'hello'])}

@pytest.mark.parametrize('caption', MIXED)
@pytest.mark.parametrize('shaped', [True, False])
def test_a_caption_has_one_direction(monkeypatch, caption, shaped):
    "Each of its lines is in the order, and ends at the side, that the caption's first letter asks for."
    from arldm.data import fonts as text
    if not text.SHAPED: pytest.skip('Pillow was built without Raqm')
    (lines, turned), to_left, width = MIXED[caption], caption[0] != 'P', 74
    font = text._font(text.dejavu(), 11, True)
    monkeypatch.setattr(text, 'SHAPED', shaped)
    pen = text.Lettering([caption])
    assert pen.wrap(caption, width) == lines and [text.visual_order(line) for line in lines] == turned
    for line, said in zip(lines, turned):
        got, right = (Image.new('L', (width + 8, 24), 255) for _ in range(2))
        pen.draw(ImageDraw.Draw(got), (4, 16), line, 0, width)
        bare, how = line.lstrip('\u200e\u200f'), 'rtl' if to_left else 'ltr'
        x = 4 + width - font.getlength(bare, direction=how) if to_left else 4
        ImageDraw.Draw(right).text((x, 16), bare, 0, font, anchor='ls', direction=how)       # as Raqm has it
        got, right = np.asarray(got).astype(int), np.asarray(right)
        if shaped: assert abs(got - right).mean() < .01, line                      # without Raqm letters are not kerned
        ink = np.flatnonzero((got < 200).any(0))
        assert ink[-1] >= width if to_left else ink[0] <= 7

def test_an_installed_font_is_found(monkeypatch):
    from matplotlib import get_data_path
    from arldm.data import fonts as text
    other = get_data_path() + '/fonts/ttf/STIXGeneral.ttf'
    more = text._letters(other) - text._letters(text.dejavu())
    c = next(chr(n) for n in sorted(more) if unicodedata.category(chr(n)) in ('Lo', 'Lu', 'Sm', 'So'))
    monkeypatch.setattr(text, 'installed_fonts', lambda: (other,))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        pen = text.Lettering([f'é {c}'])
    assert pen.paths == [text.dejavu(), other] and pen.runs(f'é{c}é') == [[text.dejavu(), 'é'], [other, c], [text.dejavu(), 'é']]

def test_missing_letters_are_named_once(monkeypatch):
    from arldm.data import fonts as text
    monkeypatch.setattr(text, 'installed_fonts', lambda: ())
    monkeypatch.setattr(text, '_warned_scripts', set())
    with pytest.warns(UserWarning, match='no font of this machine has letters such as .*日') as noted:
        show.strips([blue()], ['日本'])
        show.strips([blue()], ['日本語'])
    assert len(noted) == 1

def test_plain_captions_keep_their_font():
    from arldm.data.fonts import Lettering
    assert Lettering(['a plain caption, of 12 words!']).paths == ['']

def test_a_cell_that_is_not_run_shows_what_was_saved(tmp_path, monkeypatch, capsys):
    "What `keep_saved` has IPython run instead of such a cell; other cells are run as they are."
    lines = ['#| eval: false\n', 'train_for_a_week()']
    cell = dict(source=lines, outputs=[dict(text=['FID 12.3\n'])])
    (tmp_path/'chapter.ipynb').write_text(json.dumps(dict(cells=[cell])))
    monkeypatch.setenv('JPY_SESSION_NAME', str(tmp_path/'chapter.ipynb'))
    exec(''.join(show._saved_instead(lines)), {})
    assert capsys.readouterr().out == 'FID 12.3\n'
    assert show._saved_instead(lines[1:]) == lines[1:] and show._saved_instead([]) == []

def test_palette_stays_small():
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype='uint8')) for _ in range(3)]
    strip = show.strips([noise], ['Привет', 'שלום', 'naïve'])
    assert strip.mode == 'P' and len(strip.getcolors()) <= 255

def test_pictures_as_the_score_sees_them():
    "16 bits become their upper 8; a turned photo is upright."
    deep = Image.fromarray((np.arange(64*64).reshape(64, 64) % 256*257).astype('uint16'))
    assert np.array_equal(np.asarray(show.as_picture(deep))[..., 0], np.arange(64*64).reshape(64, 64) % 256)
    photo, out = Image.new('RGB', (40, 20), 'red'), io.BytesIO()
    ImageDraw.Draw(photo).rectangle([0, 0, 9, 19], fill='blue')
    photo.getexif()[0x112] = 6
    photo.save(out, 'png', exif=photo.getexif())
    turned = show.as_picture(Image.open(io.BytesIO(out.getvalue())))
    assert turned.size == (20, 40) and turned.getpixel((10, 2)) == (0, 0, 255)
