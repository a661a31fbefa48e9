"""Check every link and anchor of a built site: `python tools/check_docs.py [_docs]`.
Pages may load nothing from other sites; every page needs a title and description, every image alternative text."""
import re, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

class Page(HTMLParser):
    "Collect the ids, links and loaded files of a page, and what it lacks."
    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loads, self.complaints = set(), [], [], []
        self.title, self.described, self.in_title = '', False, False
        self.feed(path.read_text(encoding='utf-8'))
        if not self.title.strip(): self.complaints.append('has no title')
        if not self.described: self.complaints.append('has no description')

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        self.ids |= {a[k] for k in ('id', 'name') if a.get(k)}
        self.in_title |= tag == 'title' and not self.title
        self.described |= tag == 'meta' and a.get('name') == 'description' and bool(a.get('content'))
        if tag == 'img' and not a.get('alt'):
            self.complaints.append(f'shows an image without alternative text: {(a.get("src") or "")[:60]}')
        if tag == 'a' and 'href' in a: self.links.append(a['href'] or '')
        linked = tag == 'link' and a.get('rel') in ('stylesheet', 'icon', 'preload')
        if linked or tag not in ('a', 'link') and 'href' in a: self.loads.append(a.get('href') or '')
        if a.get('src'): self.loads.append(a['src'])

    def handle_data(self, data):
        if self.in_title: self.title += data

    def handle_endtag(self, tag):
        if tag == 'title': self.in_title = False

def is_elsewhere(url): return urlsplit(url).scheme in ('http', 'https') or url.startswith('//')

def check(site):
    "Yield the faults of a built site, one line each."
    pages = {p.resolve(): Page(p) for p in sorted(site.rglob('*.html'))}
    if not pages: yield f'{site} has no pages: build the site with make docs'
    for path, page in pages.items():
        where = path.relative_to(site.resolve())
        yield from (f'{where} {c}' for c in page.complaints)
        yield from (f'{where} loads from elsewhere: {url}' for url in page.loads if is_elsewhere(url))
        for url in dict.fromkeys(page.links + page.loads):
            parts = urlsplit(url)
            if parts.scheme or parts.netloc: continue
            target = (path.parent/unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir(): target /= 'index.html'
            if not target.is_file(): yield f'{where} links to nothing: {url}'
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                yield f'{where} links to a missing anchor: {url}'
    for path in site.rglob('*.css'):
        text = path.read_text(encoding='utf-8')
        for url in re.findall(r'url\(["\']?(https?:[^)"\']*)|@import ["\'](https?:[^"\']*)', text):
            yield f'{path.relative_to(site)} loads from elsewhere: {"".join(url)}'

if __name__ == '__main__':
    complaints = list(check(Path(sys.argv[1] if len(sys.argv) > 1 else '_docs')))
    for line in complaints: print('FAIL ', line)
    sys.exit(f'{len(complaints)} problems' if complaints else 0)
