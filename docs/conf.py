"How Sphinx renders the pages that build.py writes."
import re
from configparser import ConfigParser
from html import escape
from pathlib import Path

import ziamath
from docutils.nodes import SkipNode

config = ConfigParser(interpolation=None)
config.read(Path(__file__).resolve().parent.parent/'settings.ini', encoding='utf-8')

project, author = 'arldm', config['DEFAULT']['author']
html_title, html_theme = project, 'furo'
html_static_path, html_css_files, html_js_files = ['_static'], ['arldm.css'], ['arldm.js']
html_favicon = '_static/star.svg'
html_show_copyright = html_copy_source = html_show_sourcelink = False
pygments_style, pygments_dark_style = 'a11y-high-contrast-light', 'a11y-high-contrast-dark'

extensions = ['myst_nb']
nb_execution_mode = 'off'
nb_render_markdown_format = 'myst'
nb_ipywidgets_js = {}                        # nothing comes from another host
nb_code_prompt_show, nb_code_prompt_hide = 'Show the code', 'Hide the code'
myst_enable_extensions = ['dollarmath', 'attrs_block']
myst_heading_anchors = 3
suppress_warnings = ['myst.header']          # chapters may leave a level out
add_module_names = False
python_maximum_signature_line_length = 88
html_math_renderer = 'svg'

ziamath.config.svg2 = False                  # plain paths: no ids that several formulas would share


def draw(node, inline):
    "Return a formula as SVG in the colour and the size of the text around it."
    tex = node.astext()
    formula = ziamath.Latex(tex, size=16, inline=inline)
    (width, height), drop = formula.getsize(), formula.getyofst()
    svg = re.sub('(fill|stroke)="black"', r'\1="currentColor"', formula.svg())
    start, rest = svg.split('>', 1)
    box = start[start.index('viewBox'):]
    em = 14.5    # the font of formulas at size 16 looks as large as text of 14.5
    style = f'width:{width/em:.3f}em;height:{height/em:.3f}em'
    if inline: style += f';vertical-align:{drop/em:.3f}em'
    return (f'<svg class="formula" role="img" aria-label="{escape(tex)}" style="{style}" '
        f'xmlns="http://www.w3.org/2000/svg" {box}><title>{escape(tex)}</title>{rest}')


def inline_formula(self, node):
    self.body.append(draw(node, True))
    raise SkipNode

def block_formula(self, node):
    self.body.append(f'<div class="formula">{draw(node, False)}</div>')
    raise SkipNode

def setup(app):
    app.add_html_math_renderer('svg', (inline_formula, None), (block_formula, None))
