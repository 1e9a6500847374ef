"How Sphinx renders the pages that build.py writes."
import posixpath
import re
from configparser import ConfigParser
from functools import cache
from html import escape
from pathlib import Path

import ziamath
from docutils.nodes import SkipNode, reference
from sphinx.environment.adapters.toctree import global_toctree_for_doc
from sphinx.search.en import SearchEnglish

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


class English(SearchEnglish):
    "English, with each word stemmed once for all pages."
    @cache
    def stem(self, word): return super().stem(word)


trees = {}   # folder -> the tree of all pages, with links from this folder

def marked_tree(app, page, template, context, doctree):
    "Let furo mark this page in the tree of its folder; Sphinx would make a tree for every page."
    def toctree(**options):
        folder = posixpath.dirname(page)
        if folder not in trees:
            nowhere = posixpath.join(folder, 'search')   # which the tree does not hold
            trees[folder] = global_toctree_for_doc(
                app.env, nowhere, app.builder, tags=app.tags, **options)
        here = f'{posixpath.basename(page)}.html'
        marked = []
        for link in trees[folder].findall(reference):
            if link['refuri'] != here: continue
            link['refuri'], node = '#', link
            while node is not None:
                node['classes'].append('current')
                marked.append(node)
                node = node.parent
        html = app.builder.render_partial(trees[folder])['fragment']
        for node in marked: node['classes'].remove('current')
        if marked: marked[0]['refuri'] = here
        return html
    context['toctree'] = toctree


def setup(app):
    app.add_search_language(English)
    app.connect('html-page-context', marked_tree, priority=400)   # before furo, which has 500
    app.add_html_math_renderer('svg', (inline_formula, None), (block_formula, None))
