// Keys and files of the whole page. Runs once, in the gr.HTML of its header.

const COMMIT = 400; // ms after the last arrow key

const typing = ({ target }) => target.closest('textarea, input:not([type=range]):not([type=checkbox]):not([type=radio])');
const hold = held => document.querySelector('.me-stage').classList.toggle('me-original', held);
document.addEventListener('pointerdown', event => event.target.closest('#original') && hold(true));
document.addEventListener('keydown', event => {
    if (event.target.closest('#original') && [' ', 'Enter'].includes(event.key)) hold(true);
});
for (const name of ['pointerup', 'pointercancel', 'keyup', 'blur']) window.addEventListener(name, () => hold(false));

document.addEventListener('keydown', event => {
    if (typing(event) || !(event.ctrlKey || event.metaKey) || event.altKey) return;
    const key = event.key.toLowerCase();
    const button = { z: event.shiftKey ? '#redo' : '#undo', y: '#redo' }[key];
    if (!button) return;
    event.preventDefault();
    document.querySelector(button).click();
});

// Gradio lets go of a slider only with the pointer; keys let go of it after a pause
let commit = null;
document.addEventListener('keyup', event => {
    if (!event.target.matches('#controls input[type=range]') || !/^(Arrow|Page|Home|End)/.test(event.key)) return;
    clearTimeout(commit);
    commit = setTimeout(() => event.target.dispatchEvent(new Event('pointerup', { bubbles: true })), COMMIT);
});

// A photograph that is pasted, or dropped on the picture, is uploaded like one dropped on the field, which
// refuses other files with a message
function upload(files) {
    const field = document.querySelector('#upload input[type=file]');
    const [file] = files; // its type may be empty, as of HEIC
    if (!field || !file) return false;
    const transfer = new DataTransfer();
    transfer.items.add(file);
    field.files = transfer.files;
    field.dispatchEvent(new Event('change', { bubbles: true }));
    return true;
}
document.addEventListener('paste', event => {
    if (!typing(event) && upload(event.clipboardData.files)) event.preventDefault();
});
// A browser would leave the page for a file that is dropped beside a field
for (const name of ['dragover', 'drop']) document.addEventListener(name, event => {
    if (event.defaultPrevented || !event.dataTransfer.types.includes('Files')) return;
    event.preventDefault();
    if (name === 'drop' && event.target.closest('#pictures')) upload(event.dataTransfer.files);
});

// A list of tabs is one stop of the tabulator, and arrow keys choose among them
const tabs = () => [...document.querySelectorAll('#controls [role=tablist] [role=tab]')];
const rove = () => tabs().forEach(tab => {
    tab.tabIndex = tab.getAttribute('aria-selected') === 'true' ? 0 : -1;
});
document.addEventListener('keydown', event => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const at = tabs().indexOf(event.target);
    if (!by || at < 0) return;
    const next = tabs().at((at + by) % tabs().length);
    next.click();
    next.focus();
});
new MutationObserver(rove).observe(document.body, { subtree: true, childList: true, attributeFilter: ['aria-selected'] });
rove();

// What a control does, beside the slider that is pointed at or has the focus by key. `props.atlas`: see atlas.py
const [DELAY, LINGER] = [350, 150]; // ms until it shows, and until it goes
const tip = document.createElement('div');
tip.id = 'me-tip';
tip.role = 'tooltip';
tip.hidden = true;
tip.append(document.createElement('i'), document.createElement('span'));
element.append(tip);
let tipped = null; // the slider that it is of
let later = null;

function controlOf(unit) {
    const name = unit.id.replace('slider-', '');
    const { controls } = props.atlas;
    return controls[name] ?? controls[name.replace(/[LR]$/, '')];
}

function tell(unit) {
    const { told, tile } = controlOf(unit);
    if (!told) return;
    untell();
    tipped = unit;
    unit.querySelector('input[type=range]').setAttribute('aria-describedby', tip.id);
    const [picture, words] = tip.children;
    words.textContent = told;
    picture.hidden = !tile;
    if (tile) {
        const { url, columns, rows } = props.atlas;
        picture.style.backgroundImage = `url(${url})`;
        picture.style.backgroundSize = `${100 * columns}% ${100 * rows}%`;
        picture.style.backgroundPosition = `${(100 * tile[0]) / (columns - 1)}% ${(100 * tile[1]) / (rows - 1)}%`;
    }
    tip.hidden = false;
    const [slider, own] = [unit.getBoundingClientRect(), tip.getBoundingClientRect()];
    const beside = slider.left - own.width - 8;
    const [x, y] = beside > 0 ? [beside, slider.top] : [slider.right - own.width, slider.top - own.height - 4];
    tip.style.left = `${Math.max(x, 0)}px`;
    tip.style.top = `${Math.max(Math.min(y, innerHeight - own.height), 0)}px`;
}

function untell() {
    clearTimeout(later);
    tip.hidden = true;
    tipped?.querySelector('input[type=range]').removeAttribute('aria-describedby');
    tipped = null;
}

document.addEventListener('pointerover', event => {
    if (event.pointerType !== 'mouse' || event.buttons) return; // during a drag the face is looked at
    const unit = event.target.closest('.me-unit');
    clearTimeout(later);
    if (unit && unit !== tipped) later = setTimeout(() => tell(unit), DELAY);
    if (!unit && tipped && !tip.contains(event.target)) later = setTimeout(untell, LINGER);
});
document.addEventListener('focusin', event => {
    const unit = event.target.closest('.me-unit');
    if (unit && event.target.matches(':focus-visible')) tell(unit);
    else untell();
});
document.addEventListener('pointerdown', untell);
document.addEventListener('scroll', untell, true);
document.addEventListener('keydown', event => event.key === 'Escape' && untell());
