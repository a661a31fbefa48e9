// Sections that hold all words of a query: those that name them first, the best of each page before the rest.
window.ranked = (index, query, limit) => {
  const words = query.toLowerCase().split(/[^\p{L}\p{N}_.]+/u).filter(Boolean), phrase = words.join(' ');
  const score = (e) => {
    const [title, section, text] = [e.title, e.section, e.text].map((s) => s.toLowerCase().replaceAll('-', ' '));
    const all = `${title} ${section} ${text}`;
    const [guide, program] = [/^(guide|tutorials)\//, /^(results|figures|experiments)\//].map((r) => r.test(e.href));
    if (!words.length || !words.every((w) => all.includes(w))) return 0;
    const named = words.filter((w) => title.includes(w)).length * 6 + words.filter((w) => section.includes(w)).length * 3;
    const weight = guide ? 2 : program ? 0.5 : 1; // the guide before the library's parts, and these before programs
    return 1 + (named + (section === phrase) * 8 + 4 * Math.min(all.split(phrase).length - 1, 2)) * weight;
  };
  const seen = new Set(), first = (e) => { const page = e.href.split('#')[0]; return !seen.has(page) && seen.add(page); };
  const hits = index.map((e) => [score(e), e]).filter((h) => h[0]).sort((a, b) => b[0] - a[0]).map((h) => h[1]);
  const best = new Set(hits.filter(first));
  return [...best, ...hits.filter((e) => !best.has(e))].slice(0, limit);
};
