'use strict';
// Keeps the page as /status.json says. Without it the page shows the same, and loads itself anew.
(() => {
  const PERIOD = 2000, PATIENCE = 5000, TURNS = 5;
  let turn = 0, known = document.body.dataset.state;

  const seconds = s => s < .001 ? (s * 1e3).toFixed(2) + ' ms' : s < .01 ? (s * 1e3).toFixed(1) + ' ms'
    : s < 1 ? (s * 1e3).toFixed(0) + ' ms' : s < 10 ? s.toFixed(1) + ' s' : s.toFixed(0) + ' s';
  const get = async path => {
    const answer = await fetch(path, { cache: 'no-store', signal: AbortSignal.timeout(PATIENCE) });
    if (!answer.ok) throw new Error(answer.status);
    return answer;
  };

  // As src/status/page.rs: x is time, y the logarithm from 0.1 ms to 10 s.
  const dot = ([age, s]) => 'M' + (300 - age).toFixed(1) + ' ' + (20 * (1 - Math.log10(Math.min(Math.max(s, 1e-4), 10)))).toFixed(1) + 'h0';
  const draw = times => {
    document.getElementById('dots').setAttribute('d', times.samples.filter(([age]) => age <= 300).map(dot).join(''));
    for (const p of ['p50', 'p99'])
      document.getElementById(p).textContent = times[p + '_seconds'] === undefined ? '–' : seconds(times[p + '_seconds']);
  };

  // What a reader is marking stays as it is.
  const marked = part => { const s = getSelection(); return s && !s.isCollapsed && part.contains(s.anchorNode); };
  const renew = async () => {
    const page = new DOMParser().parseFromString(await (await get('./')).text(), 'text/html');
    document.title = page.title;
    for (const old of document.querySelectorAll('[data-part]')) {
      const part = page.getElementById(old.id);
      if (part && part.outerHTML !== old.outerHTML && !marked(old)) old.replaceWith(document.adoptNode(part));
    }
  };

  const look = async () => {
    if (!document.hidden) {
      try {
        const status = await (await get('status.json')).json();
        draw(status.freshness);
        const state = status.ready + status.state;
        if (++turn % TURNS === 0 || state !== known) await renew();
        known = state;
        document.body.classList.remove('away');
      } catch {
        document.body.classList.add('away');
      }
    }
    setTimeout(look, PERIOD);
  };
  look();
})();
